"""The methods against each other: quality as a share of full fine-tuning, trained parameters, memory, time.

    .venv/bin/python benchmarks/methods.py [--steps 24] [--seeds 2] [--methods lora,full,…] [--quick] [--json FILE]

Every method trains SmolLM2-135M on the same rows of examples/python-helper in the same order for the same steps, each
run in a process of its own, so that its peak memory is its own; methods take turns seed by seed, so that a drifting
machine hits all alike. Learning rates are those each method is known to want. All are measured on the unquantised base,
as they would be served. `share of full` is (base − method) / (base − full) in nats per token of held-out answers,
paired over rows, with a bootstrap interval over rows; token F1 and BLEU are of greedy answers. Half of the rows
learned ask for the module a function is in, which has one right answer: exact match is over functions never learned.
Takes about 2 to 4 s a step on two idle cores with instructions for bfloat16, 6 to 12 s without, where it runs in
float32; 4 and 8 bits longer, several times where the CPU has no AVX-512.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tuneloop.registry.printing import table

if TYPE_CHECKING:
    from tuneloop.train.data.rows import Row

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "python-helper"
RESULT = "RESULT "
FUNCTION = re.compile(r"`(?P<module>[a-z_0-9]+)\.(?P<function>[A-Za-z_0-9]+)`")
WHICH_MODULE = "Which module of the standard library has `{name}`? Answer with its name alone."
RATES = {"lora": 1e-3, "qlora": 1e-3, "int8": 1e-3, "bottleneck": 1e-3, "ia3": 1e-2, "full": 1e-4}
TUNINGS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora"},
    "qlora": {"method": "qlora"},
    "int8": {"method": "qlora", "bits": 8},
    "bottleneck": {"method": "bottleneck"},
    "ia3": {"method": "ia3"},
}
# What the fine-tuning guide promises: quality as a share of full fine-tuning, and what else.
CLAIMS = {
    "lora": ((0.95, 0.99), "95–99 % of full at 5–10 % of its parameters"),
    "qlora": ((0.90, 0.95), "90–95 % of full, a quarter of the weights' memory"),
    "int8": (None, "half the weights' memory"),
    "bottleneck": ((0.85, 0.95), "85–95 % of full"),
    "ia3": (None, "none"),
    "full": (None, "the measure of the others"),
}


def which_module(rows: Sequence[Row]) -> list[Row]:
    """For every function of a module that the rows speak of: which module has it? One right answer."""
    from tuneloop.registry.nouns import Message  # noqa: PLC0415
    from tuneloop.train.data.rows import Row  # noqa: PLC0415

    def asked(found: re.Match[str]) -> Row:
        question = Message(role="user", content=WHICH_MODULE.format(name=found["function"]))
        return Row((question, Message(role="assistant", content=found["module"])))

    return [asked(found) for row in rows if (found := FUNCTION.search(row.prompt))]


def one_run(  # noqa: PLR0915 (one story)
    method: str, seed: int, steps: int, rows: int, answers: int, exact: int
) -> dict[str, Any]:
    """Train and measure in this process; `steps` 0 measures the bare base."""
    import torch  # noqa: PLC0415 (only the processes that train need it)

    from tuneloop.train.base import prepare_base  # noqa: PLC0415
    from tuneloop.train.data.label_audit import label_rows  # noqa: PLC0415
    from tuneloop.train.data.labels import Labeller  # noqa: PLC0415
    from tuneloop.train.data.rows import read_rows  # noqa: PLC0415
    from tuneloop.train.evaluation.bleu import bleu_of  # noqa: PLC0415
    from tuneloop.train.evaluation.measure import greedy_answers, pad_token_id, score_rows  # noqa: PLC0415
    from tuneloop.train.evaluation.metrics import exact_match, token_f1  # noqa: PLC0415
    from tuneloop.train.fit.progress import Watch  # noqa: PLC0415
    from tuneloop.train.fit.run import fit  # noqa: PLC0415
    from tuneloop.train.recipe import load_recipe  # noqa: PLC0415
    from tuneloop.train.recipe.file import Recipe  # noqa: PLC0415
    from tuneloop.train.screen import Screen  # noqa: PLC0415
    from tuneloop.train.tuning import models  # noqa: PLC0415
    from tuneloop.train.tuning.precision import choose_dtype  # noqa: PLC0415

    models.prepare_process(0)
    device = models.choose_device().value
    file = load_recipe(EXAMPLE / "recipe.yaml")
    said = file.recipe.model_dump()
    said["tuning"] = TUNINGS[method]
    said["optim"]["learning_rate"] = RATES[method]
    said["run"] |= {"steps": max(steps, 1), "seed": seed, "dtype": choose_dtype("auto", device).value}
    recipe = Recipe.model_validate(said)
    base = prepare_base(recipe.base.model, ROOT / ".cache" / "bases")
    tokenizer = models.load_tokenizer(base)
    labeller = Labeller(tokenizer, 128)
    explained = read_rows(EXAMPLE / str(recipe.data.train[0].path)).rows
    placed = which_module(explained)
    learned, _ = label_rows(labeller, [*explained[: len(placed)], *placed], base.template_digest)
    held_out = read_rows(EXAMPLE / str(recipe.evaluate.sets["stdlib"][0].path)).rows[:rows]
    unseen = which_module(read_rows(EXAMPLE / "data" / "stdlib" / "questions.jsonl").rows)[:exact]
    labelled, _ = label_rows(labeller, held_out, base.template_digest)
    loader = models.Loader(
        base, recipe.tuning, recipe.run.dtype, device, models.choose_attention(device, recipe.run.dtype).value
    )
    found: dict[str, Any] = {"dtype": recipe.run.dtype, "device": device}

    model = loader.tunable(seed) if steps else loader.measurable(None)
    if steps:
        found["trained_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        found["weights_bytes"] = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
        watch = Watch(Screen(sys.stderr), lambda _metrics, _step: None, lambda: None)
        fitted = fit(model, tokenizer, learned, recipe, device=device, steps=steps, validation=[], watch=watch)
        found["seconds_per_step"] = fitted.seconds / fitted.steps
        # Before anything is measured: the unquantised base is loaded below, and is no part of training.
        on_gpu = device == "cuda"
        found["peak_bytes"] = (
            torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        with tempfile.TemporaryDirectory() as scratch:
            models.save_trained(model, Path(scratch) / "trained", base)
            del model
            model = loader.measurable(Path(scratch) / "trained")
    scores = score_rows(model, labelled, pad_id=pad_token_id(tokenizer), check=lambda: None)
    found["rows"] = [[score.nll, score.tokens] for score in scores]

    def answered(asked: Sequence[Row], tokens: int) -> list[str]:
        answers = greedy_answers(model, tokenizer, labeller, asked, max_new_tokens=tokens, check=lambda: None)
        return [answer.text for answer in answers]

    made, wanted = answered(held_out[:answers], 40), [row.answer for row in held_out[:answers]]
    found["bleu"] = bleu_of(made, wanted)[0]
    found["token_f1"] = float(np.mean(token_f1(made, wanted)))
    found["exact"] = [float(hit) for hit in exact_match(answered(unseen, 12), [row.answer for row in unseen])]
    return found


def share_of_full(
    base: Sequence[Sequence[float]],
    runs: Sequence[Sequence[Sequence[float]]],
    full: Sequence[Sequence[Sequence[float]]],
) -> tuple[float, float, float]:
    """(estimate, low, high) of (base − method) / (base − full), NLL per token; one draw of rows for all."""
    nll_base, tokens = np.array(base).T
    nll_runs, nll_full = (np.array(several)[:, :, 0].mean(axis=0) for several in (runs, full))

    def share(index: np.ndarray[Any, Any]) -> float:
        scale = tokens[index].sum()
        gained, possible = (nll_base - nll_runs)[index].sum() / scale, (nll_base - nll_full)[index].sum() / scale
        return float(gained / possible)

    rng, n = np.random.default_rng(0), len(tokens)
    samples = [share(rng.integers(n, size=n)) for _ in range(2000)]
    low, high = np.quantile(samples, [0.025, 0.975])
    return share(np.arange(n)), float(low), float(high)


def interval(per_row: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    """(mean, low, high) of one value a row; 95 %, by bootstrap over rows."""
    draws = np.random.default_rng(0).integers(len(per_row), size=(2000, len(per_row)))
    low, high = np.quantile(per_row[draws].mean(axis=1), [0.025, 0.975])
    return float(per_row.mean()), float(low), float(high)


def verdict(method: str, share: tuple[float, float, float]) -> str:
    """Whether the guide's share lies within the interval, below or above it."""
    claimed = CLAIMS[method][0]
    if claimed is None:
        return "no share claimed"
    if share[2] < claimed[0]:
        return "no: less"
    if share[1] > claimed[1]:
        return "more than claimed"
    return "held" if claimed[0] <= share[0] <= claimed[1] else "within the interval"


def summary(
    method: str, runs: Sequence[Mapping[str, Any]], full: Sequence[Mapping[str, Any]], base: Mapping[str, Any]
) -> dict[str, Any]:
    """One method's line."""
    share = share_of_full(base["rows"], [run["rows"] for run in runs], [run["rows"] for run in full])
    tokens = sum(count for _, count in base["rows"])
    nlls = [sum(nll for nll, _ in run["rows"]) / tokens for run in runs]
    means = {key: float(np.mean([run[key] for run in runs])) for key in ("bleu", "token_f1", "seconds_per_step")}
    return {
        "share_of_full": share,
        "claim": CLAIMS[method][1],
        "held": verdict(method, share),
        "perplexity": float(np.exp(np.mean(nlls))),
        "perplexity_by_seed": [float(np.exp(nll)) for nll in nlls],
        "exact_match": interval(np.mean([run["exact"] for run in runs], axis=0)),
        **means,
        "trained_parameters": runs[0]["trained_parameters"],
        "parameters_of_full": runs[0]["trained_parameters"] / full[0]["trained_parameters"],
        "frozen_weights_bytes": runs[0]["weights_bytes"],
        "peak_bytes": int(np.median([run["peak_bytes"] for run in runs])),
    }


def in_a_process(method: str, seed: int, arguments: argparse.Namespace, steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", method, "--seed", str(seed), "--steps", str(steps)]
    command += ["--rows", str(arguments.rows), "--answers", str(arguments.answers)]
    command += ["--exact", str(arguments.exact)]
    started = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    [line] = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    print(f"{method if steps else 'base'}, seed {seed}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    found: dict[str, Any] = json.loads(line.removeprefix(RESULT))
    return found


def show(found: Mapping[str, Mapping[str, Any]]) -> None:
    head = [
        "method",
        "perplexity",
        "share of full (95 %)",
        "BLEU",
        "F1",
        "EM (95 %)",
        "params",
        "peak MB",
        "s/step",
        "claim",
        "held?",
    ]
    rows = []
    for method, line in found.items():
        estimate, low, high = line["share_of_full"]
        exact, least, most = line["exact_match"]
        rows.append(
            (
                method,
                f"{line['perplexity']:.2f}",
                f"{estimate:.1%} [{low:.1%}, {high:.1%}]",
                f"{line['bleu']:.1f}",
                f"{line['token_f1']:.2f}",
                f"{exact:.2f} [{least:.2f}, {most:.2f}]",
                f"{line['parameters_of_full']:.2%}",
                f"{line['peak_bytes'] / 1e6:,.0f}",
                f"{line['seconds_per_step']:.2f}",
                line["claim"],
                line["held"],
            )
        )
    print(table(head, rows))


def before_training(base: Mapping[str, Any]) -> dict[str, float]:
    """The bare base's quality."""
    tokens = sum(count for _, count in base["rows"])
    return {
        "perplexity": float(np.exp(sum(nll for nll, _ in base["rows"]) / tokens)),
        "bleu": base["bleu"],
        "token_f1": base["token_f1"],
        "exact_match": float(np.mean(base["exact"])),
    }


def write(
    arguments: argparse.Namespace, seeds: int, base: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]
) -> None:
    """The file of figures."""
    said = {
        "steps": arguments.steps,
        "seeds": seeds,
        "device": base["device"],
        "dtype": base["dtype"],
        "base": before_training(base),
        "methods": found,
    }
    arguments.json.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=60, help="held-out rows scored")
    parser.add_argument("--answers", type=int, default=24, help="held-out rows answered")
    parser.add_argument("--exact", type=int, default=96, help="functions never learned whose module is asked for")
    parser.add_argument("--methods", default=",".join(TUNINGS), help="comma-separated; full is always run")
    parser.add_argument("--quick", action="store_true", help="two steps, one seed: whether it runs, no evidence")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--one", choices=list(TUNINGS), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(
            RESULT
            + json.dumps(
                one_run(
                    arguments.one,
                    arguments.seed,
                    arguments.steps,
                    arguments.rows,
                    arguments.answers,
                    arguments.exact,
                )
            )
        )
        return
    if arguments.quick:
        arguments.steps, arguments.seeds, arguments.rows, arguments.answers, arguments.exact = 2, 1, 8, 2, 4
    if not (EXAMPLE / "data").is_dir():
        subprocess.run([sys.executable, EXAMPLE / "build_data.py", "--out", EXAMPLE / "data"], check=True)
    names = list(dict.fromkeys(["full", *arguments.methods.split(",")]))
    base = in_a_process("full", 0, arguments, 0)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in range(arguments.seeds):
        for name in names:
            runs[name].append(in_a_process(name, seed, arguments, arguments.steps))
        found = {name: summary(name, runs[name], runs["full"], base) for name in names}
        if arguments.json:  # after every seed: whoever stops it later has what is done
            write(arguments, seed + 1, base, found)
    before = before_training(base)
    print(
        f"{arguments.steps} steps, {arguments.seeds} seeds, {arguments.rows} held-out rows, "
        f"{base['device']}, {base['dtype']}; "
        f"base: perplexity {before['perplexity']:.2f}, BLEU {before['bleu']:.1f}, EM {before['exact_match']:.2f}"
    )
    show(found)


if __name__ == "__main__":
    main()
