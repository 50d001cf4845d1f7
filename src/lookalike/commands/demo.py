"""`lookalike demo`: the main job, on images of things that do not exist."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from lookalike.commands.train import train
from lookalike.config import TrainConfig
from lookalike.demo.catalogue import write_catalogue
from lookalike.demo.sheet import write_sheet
from lookalike.errors import OutputError, first_line
from lookalike.files import explain, names_in, shown
from lookalike.locking import LOCK_FILE, sole_writer
from lookalike.model.pretrained import quiet_transformers
from lookalike.progress import Progress
from lookalike.runtime.randomness import seeded
from lookalike.training.history import TrainResult

SHEET = Path("results", "retrieved.png")
SIZE_PX = 48
TRAIN_CLASSES, TRAIN_VIEWS = 1500, 8
TEST_CLASSES, QUERY_VIEWS, GALLERY_VIEWS = 100, 2, 4
_MARK = ".lookalike-demo"  # tells a folder of ours, which may be emptied, from anybody else's


def demo(out: Path, *, seed: int, progress: Progress) -> TrainResult:
    """Draws a catalogue, trains a toy encoder on it from nothing, and tests it on new classes.

    Everything lands in `out`; a demo that was there before is replaced. Beside the usual results
    there is an image, `SHEET`, of queries and what was retrieved for them.

    Raises:
        OutputError: `out` cannot be written, or holds something other than a demo.
    """
    images = out / "images"
    _check_free(out)
    with sole_writer(out):  # `train` is the writer after that
        _check_free(out)  # nobody else can write there any more
        try:
            _make_room(out)
            _draw(images, seed, progress)
            encoder = _random_encoder(out / "toy-clip", seed)
        except OutputError:
            raise  # says it already
        except OSError as error:
            raise OutputError(explain(out, error, before="")) from error
        except SafetensorError as error:  # reports a full disk in its own way
            raise OutputError(f"cannot write {shown(out)}: {first_line(error)}. Free some room, or "
                              "choose another disk with --out") from error  # fmt: skip
    config = TrainConfig(
        train=str(images / "train"), query=str(images / "test" / "query"),
        gallery=str(images / "test" / "gallery"), out=str(out), seed=seed, model_name=str(encoder),
        # Found by trying (docs/experiments.md); a model that starts from nothing needs a far
        # higher learning rate than one that is fine-tuned.
        n_classes_per_batch=64, n_samples_per_class=4, num_epochs=4, learning_rate=2e-3,
        schedule="cosine", warmup_steps=15, temperature=0.06, augmentation="none",
        precision="fp32",  # products this small gain nothing from bf16
    )  # fmt: skip
    result = train(config, progress=progress)
    if result.retrieval is not None:
        write_sheet(out / SHEET, result.retrieval)
    return result


def _draw(images: Path, seed: int, progress: Progress) -> None:
    """Draws the catalogue, and says what is going on."""
    progress.note(
        "This is a demonstration: invented images, and a toy encoder that starts from random\n"
        f"weights. It learns {TRAIN_CLASSES:,} objects, and is then tested on {TEST_CLASSES} "
        "others it has never seen."
    )
    total = TRAIN_CLASSES * TRAIN_VIEWS + TEST_CLASSES * (QUERY_VIEWS + GALLERY_VIEWS)
    with progress.task("drawing a catalogue", total, "images") as task:
        write_catalogue(
            images, seed=seed, num_train_classes=TRAIN_CLASSES, num_test_classes=TEST_CLASSES,
            views_per_class=TRAIN_VIEWS, num_query_views=QUERY_VIEWS,
            num_gallery_views=GALLERY_VIEWS, size_px=SIZE_PX,
            num_workers=min(4, os.cpu_count() or 1), on_progress=task.advance,
        )  # fmt: skip


def _check_free(out: Path) -> None:
    """Raises where `out` holds something that a demo may not replace."""
    names = names_in(out)
    if names - {LOCK_FILE} and _MARK not in names:
        raise OutputError(
            f"{shown(out)} holds something other than a demo; choose another folder with --out"
        )


def _make_room(out: Path) -> None:
    """Empties `out`, but for what says that it is ours and in use."""
    (out / _MARK).touch()
    for path in out.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (_MARK, LOCK_FILE):
            path.unlink()


def _random_encoder(folder: Path, seed: int) -> Path:
    """Writes a small CLIP vision tower with random weights, as a Transformers folder."""
    shape = CLIPVisionConfig(
        image_size=SIZE_PX, patch_size=8, hidden_size=96, intermediate_size=384,
        num_hidden_layers=4, num_attention_heads=4, hidden_act="gelu", projection_dim=128,
    )  # fmt: skip
    with seeded(seed), quiet_transformers():
        CLIPVisionModelWithProjection(shape).save_pretrained(folder)
    half, side = [0.5, 0.5, 0.5], SIZE_PX
    CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size=side, image_mean=half, image_std=half
    ).save_pretrained(folder)
    return folder
