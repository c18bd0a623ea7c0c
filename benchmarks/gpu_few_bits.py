"""Products with weights of four and eight bits on a GPU, beside bfloat16: python -m benchmarks.gpu_few_bits

Microseconds of a product of 12,288 inputs and 4,096 outputs, the mean of twenty after two; weights may stay in caches.
"""

from collections.abc import Callable
from functools import partial

import torch

from server.model.quantization import triton_product
from server.model.quantization.quantize import quantize

INPUTS, OUTPUTS = 12_288, 4_096
TOKENS = (1, 16, 256, 2_048)
TIMES = 20


def microseconds(compute: Callable[[], object]) -> float:
    """What one call takes on the device."""
    compute()
    compute()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(TIMES):
        compute()
    end.record()
    end.synchronize()
    return 1000 * float(begin.elapsed_time(end)) / TIMES


def main() -> None:
    """Measure and print."""
    device = torch.device("cuda")
    weight = torch.randn(OUTPUTS, INPUTS)
    plain = weight.to(device, torch.bfloat16)
    with torch.inference_mode():
        for width in triton_product.WIDTHS:
            packed = quantize(weight, width).to(device)
            for tokens in TOKENS:
                hidden = torch.randn(tokens, INPUTS, device=device, dtype=torch.bfloat16)
                own = microseconds(partial(triton_product.multiply, packed, hidden))
                bf16 = microseconds(partial(torch.nn.functional.linear, hidden, plain))
                print(f"int{width}, {tokens} tokens: {own:.1f} us, bfloat16 {bf16:.1f} us", flush=True)


if __name__ == "__main__":
    main()
