"""The sentences of docs/reproduce.md; the tables between them are made by ``reproduce``."""

OPENING = """# Reproducing published numbers

<!-- made by `python -m llava.eval.published.reproduce > docs/reproduce.md`; a test compares -->

For each published per-benchmark score of LLaVA-1.5 7B that `llava/eval/published/published.csv`
holds: the files, the command on `{checkpoint}`, the split, the metric, and the number with its
source. **None of these commands has been run on that checkpoint by us, and no number here is
ours.** What was run is on the bundled pocket model, which is no reproduction of anything; its
tables are in `docs/results/`.

Once, for all commands:

```bash
export MODEL={checkpoint} ROOT=data/eval OUT=outputs/llava-v1.5-7b LIMIT=all BATCH=1
```

`BATCH=1` is LLaVA's own. On a GPU the model runs in float16. Put both beside a score: batch
size and dtype change it, also unpruned. Then copy the command of a cell. Commands of one
benchmark that differ in METHODS or TOKENS alone may be joined (`METHODS=full,visiondrop
TOKENS=192,64,32`), except that `BUDGET=nominal` is one for the whole command. `python -m
llava.eval.compare A B` compares two of the runs sample by sample.

## What a number of tokens means

The papers' count of a method is not always what its layers see on average. `TOKENS` alone is
the true mean over decoder layers; `BUDGET=nominal TOKENS=N` is the paper's own count.

- **VisionDrop** counts averages, so `TOKENS=192`, without BUDGET, is the paper's 192. The
  stages behind an average are published for 32 tokens only (`METHODS=visiondrop@32`, the same
  as `TOKENS=32`); at others this repository scales them ([method.md](method.md)), so 192 and 64
  may differ from the authors' in how the stages share the mean.
- **FastV, DART, SparseVLM, SparseVLM+**: N tokens are those after a drop at layer 2 or the
  papers' lists of several stages, and the true mean is larger (the column "true mean"). Their
  commands carry `BUDGET=nominal`.
- **PyramidDrop**: the papers' budgets are taken for averages, met here by one ratio for all
  stages; the authors' own setting is `METHODS=pyramiddrop@official`.
- **Methods before the LLM** (VisionZip, DivPrune, HoloV, ...): every layer sees the same N, so
  both meanings agree.

At an equal nominal count methods do not have equal cost; the table of all methods
([methods.md](methods.md)) uses true means. `random` and `uniform` belong beside any of these
rows (`METHODS=random,uniform`): few papers have them.

## Where the numbers come from

No table of the VisionDrop paper was at hand when these files were made: its rows are as a third
party quotes them.
"""

REMARKS: dict[str, tuple[str, ...]] = {
    "sqa": (
        "The unpruned model's 69.51 is not LLaVA's own: its paper and model zoo have 66.8, over "
        "questions with a picture. People who ran LLaVA's `sqa.sh` on this checkpoint report "
        "69.51 without saying which of the two accuracies ([LLaVA issue 1770]"
        "(https://github.com/haotian-liu/LLaVA/issues/1770)) and 69.42 over all questions with "
        "67.97 over those with a picture ([issue 632]"
        "(https://github.com/haotian-liu/LLaVA/issues/632)); lmms-eval gave 69.56 over questions "
        "with a picture, at batch 1 ([lmms-eval issue 236]"
        "(https://github.com/EvolvingLMMs-Lab/lmms-eval/issues/236)). So 69.51 fits image accuracy "
        "in one harness and accuracy over all questions in another; the sources do not say which "
        "it is, and the line above takes them all for image accuracy. A run here prints both: "
        "`accuracy` over all, `image accuracy` beside it. Compare the unpruned row first: the one "
        "that it meets is the one that the others are of",
        "Many methods are within a point of the unpruned model at any budget, some above it: "
        "these numbers say little about which tokens were kept",
    ),
    "pope": (
        "The paper's rows are taken for accuracy, since 86.81 is not the usual F1 of 85.9 of this "
        "model; that is inferred, not said. A run prints both",
    ),
    "mmbench": (
        "Where the split is not said, the command answers `mmbench_dev_20230712`, as LLaVA's own "
        "script does; the difference to such a number says nothing certain. LLaVA's dev score is "
        "the server's, too, whose reading of answers includes ChatGPT; the score here is by rules",
    ),
    "mmbench_cn": ("The command answers `mmbench_dev_cn_20231003`, as LLaVA's own script does",),
    "mme": ("Sources that give perception only are marked",),
    "seed": (
        "Some papers' SEED is over pictures and videos, some over pictures; here pictures only",
    ),
    "textvqa": (
        "The prompt has the reference OCR tokens, as LLaVA's question file does; without them the "
        "score is another",
    ),
}

CLOSING = """
## Tables 2 to 5

- **Table 2, LLaVA-NeXT**: `MODEL=... DATA=$ROOT bash scripts/tables/table2_llava_next.sh` with a
  LLaVA-NeXT checkpoint; it has not been run on one by us. 640, 320 and 160 are upper limits
  there: a picture of fewer tiles keeps the same share of its own tokens. Which methods are
  defined for such pictures: [methods.md](methods.md#pictures-of-any-resolution).

{next}

- **Table 3, efficiency**: times depend on the machine, so there is no cell to reproduce to the
  digit; `bash scripts/tables/table3_efficiency.sh` has FLOPs and cache by formula, and times where
  a profile is given ([efficiency.md](efficiency.md)).
- **Table 4, ablation**: no per-benchmark number of it is in `published.csv`, so nothing here
  can be compared. `bash scripts/tables/table4_ablation.sh` runs all its rows; each is a field of
  the method, for instance:

```bash
DATA=$ROOT/gqa METHODS=visiondrop TOKENS=64 bash scripts/eval/gqa.sh --method-arg merge=mean
DATA=$ROOT/gqa METHODS=visiondrop TOKENS=64 bash scripts/eval/gqa.sh --method-arg positions=original
DATA=$ROOT/gqa METHODS=visiondrop TOKENS=64 bash scripts/eval/gqa.sh --method-arg causal=expectation
```

- **Table 5, video**: `MODEL=... CONV_MODE=llava_v1 DATA=$ROOT bash scripts/tables/table5_video.sh`
  with a Video-LLaVA checkpoint; it has not been run on one by us. The papers' numbers are judged
  by a GPT, ours are exact match ([video.md](video.md)), so none is in `published.csv`.

## Handing in

| split | file in the cell's folder | made again from an answers file by |
| --- | --- | --- |
| VQAv2 test-dev | `upload.json` | `scripts/convert_vqav2_for_submission.py` |
| VizWiz test | `upload.json` | `scripts/convert_vizwiz_for_submission.py` |
| MMBench, any split | `upload.xlsx` | `scripts/convert_mmbench_for_submission.py` |
| MM-Vet | `results.json` | `scripts/convert_mmvet_for_eval.py` |

The cell's folder is `$OUT/<benchmark>-<split>/<method>-<tokens>/`, with `+budget=nominal` at
its end for nominal budgets. VQAv2's server wants an answer to every question of test2015: with
LLaVA's `llava_vqav2_mscoco_test2015.jsonl` in the data folder `upload.json` has them all, those
outside of test-dev empty.
"""
