"""`lookalike.evaluate`: one model, one protocol, two result files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from lookalike.config import EvaluateConfig
from lookalike.data.loader import ImageLoader
from lookalike.errors import ConfigError, OutputError
from lookalike.evaluation.protocol import Retrieval, evaluate_encoder, load_protocol
from lookalike.evaluation.results import result_files, write_results
from lookalike.files import shown, writable_folder
from lookalike.model.encoder import CLIPEncoder
from lookalike.progress import Progress, default_progress
from lookalike.runtime import make_runtime


@dataclass(frozen=True)
class EvaluateResult:
    """What a model retrieves, how good that is, and where it was written."""

    epoch: int
    retrieval: Retrieval
    files: list[Path]


def evaluate(config: EvaluateConfig, *, progress: Progress | None = None) -> EvaluateResult:
    """Measures a model on labelled pictures, or just retrieves among unlabelled ones.

    Writes `results/retrieval_results_epoch_XX.json` and `results/metrics_epoch_XX.json` under
    `config.out`, XX being the epoch of a checkpoint of ours, or 00.

    Raises:
        LookalikeError: of the kind that says what is wrong (see `lookalike.errors`).
    """
    progress = progress or default_progress()
    out = writable_folder(Path(config.out))
    protocol = load_protocol(config, progress)
    if protocol is None:
        raise ConfigError("there is nothing to evaluate on: give --test, or --query and --gallery")
    runtime = make_runtime(config.device, config.precision, config.num_workers)
    encoder = CLIPEncoder(config.model_name, embedding=config.embedding).to(runtime.device)
    existing = [path for path in result_files(out, encoder.epoch) if path.exists()]
    if existing and not config.overwrite:
        raise OutputError(
            f"{shown(existing[0])} exists already; choose another folder with --out, or replace "
            "it with --overwrite"
        )
    with runtime.autocast():
        dim = encoder.dim
    progress.note(f"model    {config.model_name} · {encoder.kind} {dim}-d")
    progress.note(f"test     {protocol.describe()}")
    progress.note(f"device   {runtime.describe()}")
    loader = ImageLoader(
        protocol.files, encoder.preprocessing, runtime, max_megapixels=config.max_megapixels
    )
    retrieval = evaluate_encoder(
        encoder,
        protocol,
        loader,
        runtime,
        top_k_wanted=config.top_k,
        batch_size=config.eval_batch_size,
        progress=progress,
    )
    about = {"config": asdict(config)}
    files = write_results(out, encoder.epoch, retrieval, protocol, about=about)
    return EvaluateResult(encoder.epoch, retrieval, list(files))
