"""Products with weights of four and eight bits on a GPU, beside bfloat16: python -m benchmarks.gpu_few_bits

Microseconds of a product of 12,288 inputs and 4,096 outputs, the mean of twenty after one; weights may stay in caches.
"""

from functools import partial

import torch

from server.model.device import time_us
from server.model.quantization import triton_product
from server.model.quantization.quantize import quantize

INPUTS, OUTPUTS = 12_288, 4_096
TOKENS = (1, 16, 256, 2_048)


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
                own = time_us(partial(triton_product.multiply, packed, hidden))
                bf16 = time_us(partial(torch.nn.functional.linear, hidden, plain))
                print(f"int{width}, {tokens} tokens: {own:.1f} us, bfloat16 {bf16:.1f} us", flush=True)


if __name__ == "__main__":
    main()
