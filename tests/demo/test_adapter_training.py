"""Training of the adapter: what a row computes, which tokens it learns, and a run that is stopped and resumed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from demo.adapter.attention import HeadShape
from demo.adapter.batched import BatchedNetwork
from demo.adapter.conversations import Lesson, Teacher, assistant, user
from demo.adapter.lessons import Maker
from demo.adapter.mean import write_mean
from demo.adapter.merge import write_merged
from demo.adapter.merge_gguf import write_merged_gguf
from demo.adapter.network import Gradients, Network, Row, Shape
from demo.adapter.packing import TEMPLATE, Packer
from demo.adapter.peft_format import read_adapter, write_adapter
from demo.adapter.rows import Weighting, fill_rows
from demo.adapter.sketches import read_sketches
from demo.adapter.stored import read_lessons, stored_lesson, write_lessons
from demo.adapter.train import Run, Training
from demo.adapter.train_gpu import Run as GpuRun
from demo.adapter.train_gpu import Training as GpuTraining
from demo.adapter.trials import read_trials
from demo.export import SHIPPED
from server.chat_request import ChatRequest, UserMessage
from server.checkpoint.checkpoint import Checkpoint
from server.messages import Sampling
from server.model.loading.gguf_weights import GgufWeights
from server.prompt.builder import PromptBuilder
from server.settings import Settings
from tests.adapter_folders import write_adapter as adapter_of
from tests.gguf.written import gguf_checkpoint

CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=12, tie_word_embeddings=True, rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 1e4},
)  # fmt: skip
SHAPE = Shape(2, HeadShape(4, 2, 12), 1e4, 1e-5)
PREFIX, SEGMENTS = [5, 6, 7, 8, 9], ([10, 11, 12, 13], [14, 15, 16], [17, 18, 19, 20, 21, 22])
WEIGHT = 3.0  # of the first of them
LEARNT = 2  # tokens at the end of each segment


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.open(SHIPPED, chat_template=str(TEMPLATE))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A run leaves one thread for each product."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def one_row() -> Row:
    ids, positions, segments, places = list(PREFIX), list(range(5)), [(0, 5)], list[int]()
    for segment in SEGMENTS:
        segments.append((len(ids), len(ids) + len(segment)))
        positions += range(5, 5 + len(segment))
        ids += segment
        places += [len(ids) - 1 - LEARNT + i for i in range(LEARNT)]
    targets = [ids[place + 1] for place in places]
    weights = torch.tensor([WEIGHT, 1.0] * len(SEGMENTS))
    return Row(
        torch.tensor(ids), torch.tensor(positions), segments, torch.tensor(places), torch.tensor(targets), weights
    )


def reference_loss(model: Any, weights: dict[str, Tensor]) -> Tensor:
    """The sum over conversations that are computed alone, by transformers."""
    total = torch.zeros(())
    for segment in SEGMENTS:
        ids = torch.tensor([[*PREFIX, *segment]])
        logits = torch.func.functional_call(model, weights, (ids,)).logits[0]
        losses = F.cross_entropy(logits[-1 - LEARNT : -1], ids[0, -LEARNT:], reduction="none")
        total = total + losses @ torch.tensor([WEIGHT, 1.0])
    return total


def test_a_row_has_the_loss_and_gradients_of_its_conversations_alone() -> None:
    """A conversation must not see its neighbours, and the gradients that are written by hand must be right."""
    torch.manual_seed(3)
    model = LlamaForCausalLM(CONFIG).float()
    stored = {name: tensor.detach() * 3 for name, tensor in model.state_dict().items()}
    network = Network(stored, SHAPE, rank=3, alpha=6, dtype=torch.float32)
    for group in network.all_groups():
        group.b.normal_(std=0.1)
    network.merge()
    gradients = Gradients(network.all_groups())
    scores = network.run(one_row(), gradients)

    merged = dict(stored)
    leaves: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for layer, groups in enumerate(network.groups):
        for at, group in enumerate(groups):
            a, b = group.a.clone().requires_grad_(), group.b.clone().requires_grad_()
            leaves[layer, at] = (a, b)
            for number, (name, (first, last)) in enumerate(zip(group.names, group.spans, strict=True)):
                key = next(one for one in stored if f"layers.{layer}." in one and f"{name}.weight" in one)
                merged[key] = stored[key] + 2 * b[first:last] @ a[number * 3 : number * 3 + 3]
    merged["lm_head.weight"] = merged["model.embed_tokens.weight"]
    loss = reference_loss(model, merged)
    torch.autograd.backward(loss)
    assert scores.loss == pytest.approx(float(loss.detach()), rel=1e-4)
    for (layer, at), (a, b) in leaves.items():
        group = network.groups[layer][at]
        of_a, of_b = gradients.of(group)
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(of_a, a.grad, rtol=2e-3, atol=1e-4)
        torch.testing.assert_close(of_b * group.scale, b.grad, rtol=2e-3, atol=1e-4)


def test_replies_are_learnt_behind_the_prompt_that_the_server_builds(checkpoint: Checkpoint) -> None:
    """Trained on other ids than it is asked with, a model answers worse than it could, and nothing says why."""
    lesson = Teacher(read_sketches(), 8).lesson(0)
    text, reply = "What is <|im_end|> for?", "It ends a turn."
    packed = Packer(checkpoint).pack(Lesson(lesson.tools, ((user(text), assistant(reply)),)))
    request = ChatRequest("r", [UserMessage(text)], Sampling(8), tool_definitions=lesson.tools)
    (generate,) = PromptBuilder(checkpoint, Settings()).prepare(request).generates
    learnt = [*checkpoint.encoder.encode_text(reply), checkpoint.marker_ids["<|im_end|>"]]
    newline = checkpoint.encoder.encode_text("\n")
    assert packed.row.ids.tolist() == [*generate.token_ids, *learnt, *newline]
    assert packed.row.targets.tolist() == learnt
    assert packed.row.ids[packed.row.places + 1].tolist() == learnt


def test_a_run_learns_goes_on_from_its_checkpoint_and_writes_peft_files(tmp_path: Path) -> None:
    """A resumed run must neither forget what it learnt nor start its schedule again."""
    base = gguf_checkpoint("llama") / "model.gguf"
    run = Run(base, tmp_path, minutes=60, tokens_per_step=1, max_steps=3, dtype="float32", rank=2, rate=0.02)
    training = Training(run)
    rows = [training.packer.pack(trial.lesson()) for trial in read_trials()[:4]]
    before = training.workers.judge(rows).loss
    training.go({"trials": rows})
    after = training.workers.judge(rows).loss
    assert after < before - 0.05

    resumed = Training(Run(**{**as_fields(run), "resume": True, "max_steps": 4}))
    assert resumed.progress.step == 3
    assert resumed.workers.judge(rows).loss == pytest.approx(after)
    resumed.go({"trials": rows})
    assert resumed.progress.step == 4

    network = resumed.network
    kept = [group.b.clone() for group in network.all_groups()]
    write_adapter(network, tmp_path / "written")
    for group in network.all_groups():
        group.b.zero_()
    read_adapter(network, tmp_path / "written")
    for group, b in zip(network.all_groups(), kept, strict=True):
        torch.testing.assert_close(group.b, b, rtol=0.01, atol=1e-6)


def test_rows_that_are_filled_with_stored_lessons_have_the_gradients_of_each_lesson_alone(tmp_path: Path) -> None:
    """On a GPU several lessons share a row: a wrong mask, position or weight would teach something else, unseen."""
    torch.manual_seed(5)
    model = LlamaForCausalLM(CONFIG).float()
    stored = {name: tensor.detach() * 3 for name, tensor in model.state_dict().items()}
    alone, batched = (kind(stored, SHAPE, rank=3, alpha=6, dtype=torch.float32) for kind in (Network, BatchedNetwork))
    assert isinstance(batched, BatchedNetwork)
    for group, other in zip(alone.all_groups(), batched.all_groups(), strict=True):
        group.b.normal_(std=0.1)
        other.a.copy_(group.a)
        other.b.copy_(group.b)
    alone.merge()
    batched.move(torch.device("cpu"))

    whole, longest = one_row(), 12  # two conversations are left of the second lesson
    replies = [(0, 2), (2, 4), (4, 6)]
    lessons = [stored_lesson(whole, replies, 12, most) for most in (len(whole.ids), longest)]
    write_lessons([one for one in lessons if one is not None], tmp_path / "lessons.xz")
    weighting = Weighting(first_of_calls=WEIGHT, first_of_words=WEIGHT, end=1)
    rows = fill_rows(read_lessons(tmp_path / "lessons.xz"), 40, weighting, np.random.default_rng(1))
    assert rows.ids.shape == (1, 40) and sorted(rows.kinds.tolist()) == [0, 0, 0, 1, 1]  # id 12 begins calls

    gradients, found = Gradients(alone.all_groups()), Gradients(batched.all_groups())
    cut = Row(
        whole.ids[:longest], whole.positions[:longest], whole.segments[:3], whole.places[:4], whole.targets[:4],
        whole.weights[:4],
    )  # fmt: skip
    expected = [alone.run(row, gradients) for row in (whole, cut)]
    scores = batched.run_batch(rows.batch(torch.arange(1)), found)
    assert scores.loss == pytest.approx(sum(one.loss for one in expected), rel=1e-5)
    for pair, other_pair in zip(gradients.pairs.values(), found.pairs.values(), strict=True):
        for gradient, other_gradient in zip(pair, other_pair, strict=True):
            torch.testing.assert_close(other_gradient, gradient, rtol=1e-4, atol=1e-5)


def test_training_on_stored_lessons_learns_and_keeps_what_it_learnt(tmp_path: Path) -> None:
    """A run on a machine that is lent for minutes must leave its adapter behind."""
    base = gguf_checkpoint("llama") / "model.gguf"
    maker = Maker(base)
    lessons = [maker.stored(trial.lesson()) for trial in read_trials()[:1]]
    for name in ("lessons-0", "held-trials"):
        write_lessons([one for one in lessons if one is not None], tmp_path / f"{name}.xz")
    run = GpuRun(
        base, (tmp_path, tmp_path), tmp_path / "run", seconds=3_600, device="cpu", dtype="float32", rank=2, rate=0.04,
        max_steps=3, length=400, rows_at_once=1,
    )  # fmt: skip
    training = GpuTraining(run)
    before = training.judge(training.rows).loss
    training.go()
    after = training.judge(training.rows).loss
    assert after < before - 0.05

    again = GpuTraining(GpuRun(**{**as_fields(run), "start_from": tmp_path / "run" / "newest"}))
    assert again.judge(again.rows).loss == pytest.approx(after, abs=0.01)
    assert (tmp_path / "run" / "best" / "adapter_model.safetensors").is_file()


def as_fields(run: Run | GpuRun) -> dict[str, Any]:
    return {name: getattr(run, name) for name in run.__dataclass_fields__}


def test_a_merged_gguf_file_holds_the_numbers_of_the_merged_folder(tmp_path: Path) -> None:
    """Rows of queries and keys have an order of their own in such files: in another one it computes nonsense."""
    folder = gguf_checkpoint("llama")
    adapter = adapter_of(tmp_path / "one", folder, rank=2)
    write_merged(folder / "model.gguf", adapter, tmp_path / "merged")
    write_merged_gguf(folder / "model.gguf", adapter, tmp_path / "merged.gguf")
    found = GgufWeights(tmp_path / "merged.gguf", torch.bfloat16)
    expected = load_file(tmp_path / "merged" / "model.safetensors")
    base = GgufWeights(folder / "model.gguf", torch.bfloat16)
    assert found.keys() >= expected.keys()
    assert all(torch.equal(found[name], weight.to(torch.bfloat16)) for name, weight in expected.items())
    assert not torch.equal(
        found["model.layers.1.self_attn.q_proj.weight"], base["model.layers.1.self_attn.q_proj.weight"]
    )
    opened = [Checkpoint.open(tmp_path / name) for name in ("merged", "merged.gguf")]
    assert opened[0].template.source == opened[1].template.source == TEMPLATE.read_text(encoding="utf-8")


def test_the_mean_of_two_adapters_adds_the_mean_of_what_they_add(tmp_path: Path) -> None:
    """The mean of the factors is another product: it would be served without complaint, and be neither of both."""
    torch.manual_seed(4)
    stored = {name: tensor.detach() for name, tensor in LlamaForCausalLM(CONFIG).float().state_dict().items()}
    network = Network(stored, SHAPE, rank=3, alpha=6, dtype=torch.float32)
    for folder in ("first", "second"):  # of the same A in other coordinates, so that their mean has rank 3 as well
        turn = torch.linalg.qr(torch.randn(3, 3)).Q
        for group in network.all_groups():
            group.a.copy_(torch.cat([turn @ part for part in group.a.split(3)]))
            group.b.normal_()
        write_adapter(network, tmp_path / folder)
    assert write_mean(tmp_path / "first", tmp_path / "second", tmp_path / "mean") < 1e-4
    first, second, mean = (
        load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("first", "second", "mean")
    )
    assert mean.keys() == first.keys()
    for name in (name for name in mean if ".lora_A." in name):
        one, other, found = (
            of[name.replace("lora_A", "lora_B")].float() @ of[name].float() for of in (first, second, mean)
        )
        torch.testing.assert_close(found, (one + other) / 2, rtol=0.02, atol=0.01 * float(found.abs().max()))
    unlike = Network(stored, SHAPE, rank=3, alpha=3, dtype=torch.float32)
    write_adapter(unlike, tmp_path / "unlike")
    with pytest.raises(ValueError, match="ranks and alphas"):
        write_mean(tmp_path / "first", tmp_path / "unlike", tmp_path / "mean")
