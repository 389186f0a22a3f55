"""Search VFlowOpt's hyper-parameters for a model at a fixed average of visual tokens.

    python -m llava.eval.vflowopt_search --model-path checkpoints/pocket-llava \\
        --questions playground/data/eval/textvqa/llava_textvqa_val_v051_ocr.jsonl \\
        --image-folder playground/data/eval/textvqa/train_images \\
        --tokens 64 --samples 30 --trials 60 --out outputs/vflowopt-64.json

What is maximised (VFlowOpt, arXiv 2508.05211): the cosine between the final hidden states of the
prompt's last token with and without pruning, mean over some samples without labels.  Searched are
how many tokens enter the LLM, the first ratio inside it (the last follows from the average), alpha,
the calibration threshold and the recycling grid.  Trials are kept beside the result; the same
command goes on where it stopped, and ends alike whether it was stopped or not.  The result is used
by ``--method vflowopt --tokens 64 --method-arg @outputs/vflowopt-64.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava.eval.answering import LoadedModel, generate
from llava.eval.cli import add_model_flags, model_choice, run_settings
from llava.eval.errors import EXIT_OK, EvalError, run_main
from llava.eval.files import write_atomically
from llava.eval.loading import load_model, read_config
from llava.eval.planning import geometry_of_config
from llava.eval.preparing import Prepared, QuestionDataset
from llava.eval.samples import Sample, batches_of, check_images, read_questions
from llava.eval.settings import RunSettings, digest_of_json
from visiondrop import Full, Reducer, TowerCache
from visiondrop.adapters import Geometry, adapter_of
from visiondrop.functional.patches import cells
from visiondrop.functional.ratios import three_counts
from visiondrop.methods.vflowopt import VFlowOpt

STARTUP = 10
"""Trials drawn at random before the sampler models what it has seen."""
CACHE_BYTES = 1 << 30


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description="Search VFlowOpt's hyper-parameters.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--questions", required=True, help="jsonl: question_id, image, text")
    p.add_argument("--image-folder", help="default: train_images beside the questions")
    p.add_argument("--tokens", type=int, default=64, help="visual tokens, mean over layers")
    p.add_argument("--samples", type=int, default=30, help="how many questions, drawn by the seed")
    p.add_argument("--trials", type=int, default=100, help="in all, those of earlier runs included")
    p.add_argument("--out", required=True, help="result, json; trials beside it in .trials.jsonl")
    p.add_argument("--recycle", choices=("encoder", "all", "none"), default="encoder")
    p.add_argument("--seed", type=int, default=0, help="of the samples and of the search")
    p.add_argument("--batch-size", type=int, default=8)
    p.add_argument("--conv-mode", default="vicuna_v1")
    p.add_argument("--image-aspect-ratio", default=None)
    add_model_flags(p)
    # What `run_settings` asks for beside; only the prompt's last state is read here.
    p.set_defaults(temperature=0.0, top_p=None, num_beams=1, max_new_tokens=1, blank_picture=False)
    return p


def import_optuna() -> Any:
    """The optional dependency. Raises `EvalError` with the remedy where it is missing."""
    try:
        import optuna
    except ImportError:
        raise EvalError(
            "the search needs the package optuna: pip install 'visiondrop[search]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def draw_samples(everything: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """`count` questions with a picture, drawn without replacement; all where there are fewer."""
    if count < 1:
        raise EvalError(f"--samples {count}: at least one is needed")
    shown = [sample for sample in everything if sample.image is not None]
    if not shown:
        raise EvalError("no question of the file has a picture")
    return random.Random(seed).sample(shown, min(count, len(shown)))


@contextmanager
def last_token_states(model: Any) -> Iterator[list[Tensor]]:
    """Collects [B, D], the last token's state after the decoder's final norm, of each forward."""
    found: list[Tensor] = []

    def note(_module: Any, _args: Any, output: Any) -> None:
        found.append(output.last_hidden_state[:, -1].float())

    handle = adapter_of(model).decoder(model).register_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()


class Objective:
    """Mean cosine of last-token states with a method and without one, over prepared samples."""

    def __init__(
        self,
        loaded: LoadedModel,
        prepared: Sequence[Prepared],
        samples: Sequence[Sample],
        settings: RunSettings,
    ):
        self.loaded, self.settings = loaded, settings
        self.batches = [
            ([prepared[i] for i in batch], [samples[i] for i in batch])
            for batch in batches_of(len(samples), settings.batch_size)
        ]
        self.cache = TowerCache(CACHE_BYTES)
        self.plain = self.states(Full())

    @torch.inference_mode()
    def states(self, method: Reducer) -> Tensor:
        """[samples, D] under a method."""
        with last_token_states(self.loaded.model) as found:
            with method(self.loaded.model, tower_cache=self.cache) as trace:
                for prepared, samples in self.batches:
                    generate(self.loaded, prepared, samples, self.settings, trace)
                    trace.clear()
        return torch.cat(found)

    def __call__(self, method: Reducer) -> float:
        """The mean cosine, 1 where nothing changes."""
        return float(torch.cosine_similarity(self.states(method), self.plain, dim=1).mean())


class Space:
    """What is searched: any point is a VFlowOpt with the average asked for.

    The bounds are those of the authors' search: entry up to 1.5 times the average, first ratio from
    0.53, t up to 50, cells from 3 patches on, alpha from -1 to 1.
    """

    def __init__(self, tokens: int, geometry: Geometry, recycle: str, mean_std: Any):
        self.tokens, self.geometry, self.recycle = tokens, geometry, recycle
        self.mean, self.std = mean_std
        start = self.default()
        self.layers = tuple(start.layers)
        side = max(geometry.grid)
        fits = (a for a in range(1, side + 1) if cells(geometry.grid, a)[1] <= self.least(start))
        self.grid = float(min(max(next(fits), 3), side)), float(side)
        room = (tokens * geometry.num_layers - (geometry.num_layers - self.layers[0])) / (
            self.layers[0] * tokens
        )
        self.entry = 1.0, max(1.0, min(1.5, room, geometry.num_patches / tokens))

    def least(self, method: VFlowOpt) -> int:
        """Fewest tokens that any recycling may have to leave, as far as known beforehand."""
        return self.tokens if self.recycle != "all" else min(method.counts(self.patches))

    @property
    def patches(self) -> int:
        """Tokens of a whole picture."""
        return self.geometry.num_patches

    def default(self) -> VFlowOpt:
        """The released setting's shape, which the search must at least meet."""
        method = VFlowOpt.from_average(
            self.tokens,
            num_layers=self.geometry.num_layers,
            num_patches=self.patches,
            recycle=self.recycle,
            image_mean=self.mean,
            image_std=self.std,
        )
        method.check(self.geometry)
        return method

    def suggest(self, trial: Any) -> VFlowOpt:
        """The method of a trial. Raises `ValueError` where its grid is too fine for its counts."""
        share = trial.suggest_float("first", 0.53, 1.0)
        enter = round(self.tokens * trial.suggest_float("entry", *self.entry))
        enter = min(self.patches, max(self.tokens, enter))
        depth = self.geometry.num_layers
        a, b, c = three_counts(self.tokens, enter, share, self.layers, depth)
        method = replace(
            self.default(),
            ratios=(a / self.patches, b / a, c / b),
            t=trial.suggest_float("t", 0.0, 50.0),
            alpha=trial.suggest_float("alpha", -1.0, 1.0),
            grid=trial.suggest_float("grid", *self.grid),
        )
        method.check(self.geometry)
        return method


def search(optuna: Any, study: Any, space: Space, objective: Objective, trials: int, seed: int):
    """Go on to `trials` complete trials. The first one is the released setting's shape."""
    complete = optuna.trial.TrialState.COMPLETE
    ended = (complete, optuna.trial.TrialState.PRUNED)
    while (done := sum(t.state in ended for t in study.trials)) < trials:
        # Seeded by its number, a trial is the same whether the search was stopped before or not.
        study.sampler = optuna.samplers.TPESampler(
            seed=seed * 1_000_003 + done, n_startup_trials=STARTUP
        )
        trial = study.ask()
        try:
            method = space.default() if done == 0 else space.suggest(trial)
        except ValueError:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            continue
        value = objective(method)
        trial.set_user_attr("method", method.to_dict())
        study.tell(trial, value)
        best = study.best_trial
        print(
            f"trial {done + 1} of {trials}: cosine {value:.5f} (best {best.value:.5f})", flush=True
        )
        yield value


def describe(study: Any, space: Space, settings: RunSettings, samples: Sequence[Sample]) -> Any:
    """The result: the best trial's method whole, and what it was found on."""
    valued = [t for t in study.trials if t.value is not None]
    best, first = study.best_trial, min(valued, key=lambda t: t.number)
    method = Reducer.from_dict(best.user_attrs["method"])
    sizes = space.geometry.num_layers, space.patches, space.geometry.has_cls
    return {
        "method": method.to_dict(),
        "tokens": space.tokens,
        "mean_tokens": method.mean_tokens(*sizes),
        "cosine": best.value,
        "cosine_of_released_shape": first.value,
        "trials": len(study.trials),
        "model": settings.model,
        "model_fingerprint": settings.model_fingerprint,
        "questions": settings.questions,
        "samples": [sample.key for sample in samples],
        "seed": settings.seed,
    }


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.trials < 1:
        raise EvalError(f"--trials {args.trials}: at least one is needed")
    optuna = import_optuna()
    folder = args.image_folder or Path(args.questions).parent / "train_images"
    samples = draw_samples(read_questions(args.questions), args.samples, args.seed)
    check_images(samples, folder)
    choice = model_choice(args)
    config = read_config(choice)
    geometry = geometry_of_config(config)
    settings = run_settings(args, choice, config, args.questions, {"name": "vflowopt"}, args.seed)
    loaded = load_model(choice)
    processor = loaded.image_processor
    try:
        mean_std = tuple(processor.image_mean), tuple(processor.image_std)
        space = Space(args.tokens, geometry, args.recycle, mean_std)
    except ValueError as error:
        raise EvalError(str(error)) from None
    dataset = QuestionDataset(
        samples,
        folder,
        loaded.tokenizer,
        processor,
        loaded.model.config,
        settings.conv_mode,
        settings.image_aspect_ratio,
    )
    prepared = [dataset[i] for i in range(len(samples))]
    if broken := [p.error for p in prepared if p.error is not None]:
        raise EvalError(f"{len(broken)} samples cannot be used: {broken[0]}")
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    journal = optuna.storages.journal.JournalFileBackend(str(out.with_suffix(".trials.jsonl")))
    what = [settings.to_dict(), args.tokens, args.recycle, [sample.key for sample in samples]]
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(journal),
        study_name=digest_of_json(what)[:16],
        direction="maximize",
        load_if_exists=True,
    )
    objective = Objective(loaded, prepared, samples, settings)

    def save() -> Any:
        result = describe(study, space, settings, samples)
        write_atomically(out, json.dumps(result, indent=2) + "\n")
        return result

    for _ in search(optuna, study, space, objective, args.trials, args.seed):
        save()
    result = save()
    print(
        f"{out}: cosine {result['cosine']:.5f} at {result['mean_tokens']:.2f} tokens "
        f"(released shape: {result['cosine_of_released_shape']:.5f}), {result['trials']} trials"
    )
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_main(main))
