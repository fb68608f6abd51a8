"""Fine-tuning of a teacher, for gpu_suite.py: pairs a second in bf16 on the GPU, beside this machine's CPU.

A step is what training does of it: forward under autocast, binary cross-entropy, backward, clipping, AdamW; 64 pairs of 64 tokens, random
weights and tokens. Reading data and evaluation are left out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np

from edgerec._core import isas
from edgerec.machine import describe_machine

# As the recipes train them: layers, hidden, heads.
TEACHERS = {"MiniLM-L6": (6, 384, 12), "MPNet base": (12, 768, 12)}
SMALL = {"small": (2, 64, 2)}
PAIRS, TOKENS, VOCAB = 64, 64, 30522
SECONDS, MOST_STEPS = 8.0, 200
WARM_UP = {"cuda": 3, "cpu": 1}


def training(suite: Any, not_run: type[Exception]) -> Iterator[dict[str, Any]]:
    """GPU first; of the median step."""
    try:
        torch: Any = importlib.import_module("torch")
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise not_run(f"torch and transformers cannot be imported: {error}") from error
    gpu = torch.cuda.is_available()
    for name, shape in (SMALL if suite.args.rehearse else TEACHERS).items():
        rates = {}
        for place in ("cuda", "cpu") if gpu else ("cpu",):
            native = place == "cuda" or fast_bf16()
            step = _step(torch, transformers, shape, place, bf16=native)
            seconds = 0.2 if suite.args.rehearse else min(SECONDS, max(1.0, suite.left() / 8))
            times = _times(step, seconds, WARM_UP[place])
            rates[place] = PAIRS / float(np.median(times))
            row = {"teacher": name, "on": place, "precision": "bf16" if native else "fp32", "steps": len(times), "pairs/s": rates[place]}
            yield row | {"threads": torch.get_num_threads()} if place == "cpu" else row
        if gpu:
            yield {"teacher": name, "GPU / CPU": rates["cuda"] / rates["cpu"]}
    if not gpu:
        raise not_run("torch sees no GPU; the CPU's rate stands alone")


def fast_bf16() -> bool:
    """Whether this processor is faster in bf16, as `precision = "auto"` decides in `edgerec.training.loop`, which needs more packages than
    there are on a GPU machine; Intel's needs AMX."""
    found = isas()
    return "amx" in found or ("avx512_bf16" in found and not describe_machine()["processor"].startswith("Intel"))


def _step(torch: Any, transformers: Any, shape: tuple[int, int, int], place: str, *, bf16: bool) -> Callable[[], None]:
    layers, hidden, heads = shape
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": 4 * hidden}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=VOCAB, num_labels=1, **sizes)).to(place).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-5)
    ids = torch.randint(5, VOCAB, (PAIRS, TOKENS), device=place)
    mask, labels = torch.ones_like(ids), torch.rand(PAIRS, device=place)

    def step() -> None:
        with torch.autocast(place, dtype=torch.bfloat16, enabled=bf16):
            logits = model(input_ids=ids, attention_mask=mask).logits[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if place == "cuda":
            torch.cuda.synchronize()

    return step


def _times(step: Callable[[], None], seconds: float, warm_up: int) -> list[float]:
    """Of single steps, at least one, for about so many seconds."""
    for _ in range(warm_up):
        step()
    until, times = perf_counter() + seconds, list[float]()
    while not times or (perf_counter() < until and len(times) < MOST_STEPS):
        began = perf_counter()
        step()
        times.append(perf_counter() - began)
    return times
