"""`Embedder`: images in any form, texts, streams, and the fingerprint that tells models apart."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import models
from PIL import Image, ImageSequence
from safetensors.numpy import load_file
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

import lookalike
from lookalike import CLIPEncoder, Embedder, ExportConfig, TrainConfig
from lookalike.data.sources import load_unlabelled
from lookalike.embedding import embedder as module
from lookalike.embedding import fingerprint
from lookalike.embedding.interchange import embedder_of_both, save_embeddings
from lookalike.errors import ConfigError, DataError, ModelError
from lookalike.model.inference import inference_form
from lookalike.model.lora import add_lora, merge_for_good, merged
from lookalike.progress import SilentProgress
from lookalike.runtime.device import make_runtime

Settings = Callable[..., dict[str, Any]]
VISION: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
RESNET: dict[str, Any] = {
    "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "bottleneck"
}  # fmt: skip


@pytest.fixture
def embedder(tiny_clip: Path) -> Embedder:
    return of(tiny_clip)


def of(model: Any, **options: Any) -> Embedder:
    """An embedder of the plainest kind: float32, no other processes."""
    settings: dict[str, Any] = {"device": "cpu", "precision": "fp32", "num_workers": 0} | options
    return Embedder(model, **settings)


def saved(folder: Path, model: Any) -> Path:
    """A model as Transformers saves it, with a processor."""
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


def paths_in(photos: Path) -> list[Path]:
    return sorted((photos / "test").rglob("*.png"))


def test_images_and_texts_are_what_transformers_itself_computes(
    tiny_clip: Path, photos: Path
) -> None:
    embedder, paths = of(tiny_clip, exact_pixels=True), paths_in(photos)[:5]
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    processor = CLIPImageProcessorPil.from_pretrained(tiny_clip)
    pixels = processor([Image.open(path).convert("RGB") for path in paths], return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(tiny_clip)(["a red shoe", "b"], padding=True,
                                                      return_tensors="pt")  # fmt: skip
    with torch.no_grad():
        output = model(**pixels, **tokens)
    assert torch.allclose(embedder.images(paths), output.image_embeds, atol=1e-6)
    assert torch.allclose(embedder.texts(["a red shoe", "b"]), output.text_embeds, atol=1e-6)


def test_the_rows_are_those_that_evaluation_has_to_the_bit(
    photos: Path, settings: Settings
) -> None:
    options = {name: value for name, value in settings().items()
               if name not in ("train", "learning_rate")}  # fmt: skip
    result = lookalike.evaluate(lookalike.EvaluateConfig(**options), progress=SilentProgress())
    assert result.retrieval is not None
    embedder = of(options["model_name"])
    expected = result.retrieval.gallery_embeddings[:]
    assert torch.equal(embedder.images(paths_in(photos)), expected)
    streamed = list(embedder.stream(photos / "test"))
    assert torch.equal(torch.cat([part.embeddings for part in streamed]), expected)


def _modes() -> dict[str, Image.Image]:
    """One image of each kind that has to be flattened."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (50, 44, 3), dtype=np.uint8))
    with_alpha = colour.copy()
    with_alpha.putalpha(Image.fromarray(rng.integers(0, 256, (50, 44), dtype=np.uint8)))
    palette = colour.quantize(8)
    palette.info["transparency"] = 3
    turned = colour.copy()
    turned.getexif()[0x0112] = 6
    deep = Image.fromarray(rng.integers(0, 2**16, (50, 44), dtype=np.uint16))
    return {"RGB": colour, "RGBA": with_alpha, "P": palette, "L": colour.convert("L"),
            "I;16": deep, "CMYK": colour.convert("CMYK"), "turned": turned}  # fmt: skip


@pytest.mark.parametrize("mode", _modes())
def test_an_image_has_one_embedding_however_it_is_handed_over(
    embedder: Embedder, tmp_path: Path, mode: str
) -> None:
    image = _modes()[mode]
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    exif = image.getexif()
    if mode == "turned":
        exif[0x0112] = 6
    image.save(path, exif=exif)
    with open(path, "rb") as file, Image.open(path) as opened:
        items = [path, str(path), path.read_bytes(), file, io.BytesIO(path.read_bytes()), opened]
        if mode != "turned":
            items.append(image)
        if mode in ("RGB", "L"):
            items.append(np.asarray(image))
        rows = [embedder.images([item]) for item in items]
    for row in rows:
        assert torch.equal(row, rows[0])
    assert rows[0].norm(dim=1) == pytest.approx(1)


def test_large_jpeg_files_are_decoded_at_the_same_fraction_from_memory(
    embedder: Embedder, tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (300, 320, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    rows = embedder.images([path, path.read_bytes()])
    assert torch.equal(rows[0], rows[1])


def test_any_number_of_images_and_texts_is_taken(embedder: Embedder, photos: Path) -> None:
    paths = paths_in(photos)
    assert embedder.images([]).shape == embedder.texts([]).shape == (0, 24)
    assert embedder.images(iter(paths[:1])).shape == (1, 24)
    small = of(embedder.encoder, batch_size=4)
    expected = torch.cat([embedder.images(paths[start : start + 4]) for start in range(0, 18, 4)])
    assert torch.equal(small.images(path for path in paths), expected)
    batch = np.stack([np.asarray(Image.open(path)) for path in paths[:3]])
    assert torch.equal(embedder.images(batch), embedder.images(paths[:3]))


def test_every_item_that_cannot_be_read_is_named_in_one_error(
    embedder: Embedder, photos: Path, tmp_path: Path
) -> None:
    good, text = paths_in(photos)[0], tmp_path / "a.txt"
    text.write_text("hello")
    cases: list[tuple[Any, str]] = [
        (photos / "none.png", r"item 1 \(.*none\.png\): No such file"),
        (good.read_bytes()[:200], r"item 1: image file is truncated"),
        (b"", r"item 1: "),
        (np.ones((4, 4, 3)), r"item 1: an array of float64 of shape \(4, 4, 3\); expected uint8"),
        (np.ones((4, 4, 4), np.uint8), r"of shape \(4, 4, 4\)"),
        (np.ones((0, 4, 3), np.uint8), r"of shape \(0, 4, 3\)"),
        (7, r"item 1: a int; expected a path, bytes"),
        (Image.new("RGB", (0, 10)), r"item 1: 0x10 px, which is empty"),
    ]
    for item, words in cases:
        with pytest.raises(DataError, match=rf"1 image cannot be read: .*{words}"):
            embedder.images([good, item, good])
    with open(text) as file, pytest.raises(DataError, match="a TextIOWrapper; expected"):
        embedder.images([file])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"item 0: a file object that cannot be read: .*closed"):
        embedder.images([file])  # type: ignore[list-item]
    with open(tmp_path / "b", "wb") as out, pytest.raises(DataError, match=r"cannot be read: "):
        embedder.images([out])
    read = io.BytesIO(good.read_bytes())
    assert embedder.images([read]).shape == (1, 24)
    with pytest.raises(DataError, match=r"item 0: a file object that is empty, or at its end"):
        embedder.images([read])
    with pytest.raises(DataError, match=r"5 images.*item 0: .*item 2: .*; and 2 more"):
        embedder.images([b"x"] * 5)
    limited = of(embedder.encoder, max_megapixels=0.001)
    with Image.open(good) as opened:
        forms = [good, good.read_bytes(), opened.copy(), np.asarray(opened)]
    for item in forms:
        with pytest.raises(DataError, match=r"item 0.*(megapixels|px)"):
            limited.images([item])


def test_an_opened_image_may_come_twice(embedder: Embedder, photos: Path) -> None:
    path = paths_in(photos)[0]
    with Image.open(path) as opened, open(path, "rb") as file:
        rows = embedder.images([opened, opened, file, file])
    assert torch.equal(rows, embedder.images([path] * 4))


def test_what_an_iterator_yields_may_change_when_it_is_asked_for_more(
    embedder: Embedder, photos: Path, tmp_path: Path
) -> None:
    """Frames of an animation are one image object, those of a video often one array."""
    arrays = [np.asarray(Image.open(path)) for path in paths_in(photos)[:3]]
    expected = embedder.images(arrays)

    def frames() -> Iterator[np.ndarray]:
        buffer = np.empty_like(arrays[0])
        for array in arrays:
            buffer[:] = array
            yield buffer

    assert torch.equal(embedder.images(frames()), expected)
    first, *others = [Image.fromarray(array) for array in arrays]
    first.save(tmp_path / "a.png", save_all=True, append_images=others)
    with Image.open(tmp_path / "a.png") as opened:
        assert torch.equal(embedder.images(ImageSequence.Iterator(opened)), expected)


def test_a_large_image_of_the_callers_keeps_its_size(embedder: Embedder, tmp_path: Path) -> None:
    Image.new("RGB", (320, 300), "red").save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as opened:
        embedder.images([opened])
        assert opened.size == (320, 300)


@pytest.mark.parametrize(
    "wrong",
    [{"device": None}, {"exact_pixels": "maybe"}, {"batch_size": 0}, {"batch_size": -1},
     {"embedding": "foo"}, {"num_workers": -2}, {"max_megapixels": 0}],
)  # fmt: skip
def test_impossible_arguments_are_refused_by_their_names(
    tiny_clip: Path, wrong: dict[str, Any]
) -> None:
    name = next(iter(wrong))
    with pytest.raises(ConfigError, match=rf"^{name} is "):
        of(tiny_clip, **wrong)


def test_a_stream_needs_a_source_and_batches_of_some_images(
    embedder: Embedder, photos: Path
) -> None:
    with pytest.raises(ConfigError, match="batch_size is 0; it must be at least 1"):
        next(embedder.stream(photos / "test", batch_size=0))
    with pytest.raises(DataError, match=r"a folder, .* was given a list; .*images\(\[\.\.\.\]\)"):
        next(embedder.stream(["a.jpg"]))  # type: ignore[arg-type]


def test_texts_come_as_any_iterable_of_strings(embedder: Embedder) -> None:
    expected = embedder.texts(["a red shoe", "b"])
    assert torch.equal(embedder.texts(text for text in ("a red shoe", "b")), expected)
    assert torch.equal(embedder.texts(np.array(["a red shoe", "b"])), expected)
    assert torch.equal(embedder.texts(["a\udcff"]), embedder.texts(["a?"]))
    for single in ("a red shoe", b"a", None, 3):
        with pytest.raises(DataError, match=r"takes a list of texts .* write texts\(\[\.\.\.\]\)"):
            embedder.texts(single)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="text 1 is of type NoneType; expected str"):
        embedder.texts(["a", None])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "single", ["a.png", b"abc", Path("a.png"), np.ones((4, 4, 3), np.uint8), io.BytesIO(b"abc"), 3]
)
def test_a_single_image_that_is_no_list_is_refused(embedder: Embedder, single: Any) -> None:
    with pytest.raises(DataError, match=r"takes a list of images .* write images\(\[\.\.\.\]\)"):
        embedder.images(single)


def test_texts_need_a_text_tower(embedder: Embedder, tmp_path: Path, tiny_clip: Path) -> None:
    assert embedder.has_text
    vision = of(saved(tmp_path, ViTModel(ViTConfig(**VISION))))
    pooled = of(tiny_clip, embedding="pooled")
    assert (vision.has_text, pooled.has_text) == (False, False)
    assert (vision.kind, vision.dim, pooled.kind, pooled.dim) == ("pooled", 16, "pooled", 32)
    for strings in (["a"], []):
        with pytest.raises(ModelError, match="has no text tower"):
            vision.texts(strings)
    with pytest.raises(ModelError, match="use projected ones"):
        pooled.texts(["a"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_yields_rows_names_and_what_is_unreadable(
    tiny_clip: Path, photos: Path, num_workers: int
) -> None:
    paths = paths_in(photos)
    for bad in (2, 9, 10, 11):
        paths[bad].write_bytes(paths[bad].read_bytes()[:200])
    embedder = of(tiny_clip, num_workers=num_workers)
    images = load_unlabelled(photos / "test")
    parts = list(embedder.stream(photos / "test", batch_size=3))
    assert [part.positions.tolist() for part in parts] == [
        [0, 1], [3, 4, 5], [6, 7, 8], [], [12, 13, 14], [15, 16, 17],
    ]  # fmt: skip
    for part in parts:
        assert part.names == [images.names[position] for position in part.positions]
        if len(part.positions):
            expected = of(tiny_clip).images([images.paths[p] for p in part.positions])
            assert torch.allclose(part.embeddings, expected, atol=1e-6)
    unreadable = [one for part in parts for one in part.unreadable]
    assert [one.path for one in unreadable] == [str(paths[bad]) for bad in (2, 9, 10, 11)]
    for source in (images, embedder.loader(images.paths)):
        again = torch.cat([part.embeddings for part in embedder.stream(source, 3)])
        assert torch.equal(again, torch.cat([part.embeddings for part in parts]))


def test_rows_depend_neither_on_the_order_nor_on_unreadable_images(
    tiny_clip: Path, photos: Path
) -> None:
    """Though the last batch is of one image, whose product with a matrix is rounded otherwise."""
    images, embedder = load_unlabelled(photos / "test"), of(tiny_clip)

    def rows(order: list[int]) -> torch.Tensor:
        parts = embedder.stream(images.subset(order), batch_size=len(order) - 1)
        found = torch.cat([part.embeddings for part in parts])
        return found[torch.argsort(torch.tensor(order))]

    expected = rows([*range(18)])
    assert torch.equal(rows([*reversed(range(18))]), expected)
    Path(images.paths[3]).write_bytes(b"damaged")
    parts = list(embedder.stream(images, batch_size=17))
    found = torch.cat([part.embeddings for part in parts])
    assert torch.equal(found, expected[[i for i in range(18) if i != 3]])


def test_a_stream_computes_no_further_than_it_is_asked(tiny_clip: Path, photos: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    seen: list[int] = []
    encoder.register_forward_hook(lambda *_: seen.append(1))
    stream = of(encoder).stream(photos / "test", batch_size=2)
    assert not seen
    next(stream)
    assert len(seen) == 1
    assert torch.is_grad_enabled(), "while it waits, the caller's own arithmetic is as before"
    stream.close()


def test_the_fast_form_is_made_once_and_the_encoder_stays_as_it_is(
    tiny_clip: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def noting(*args: Any) -> Any:
        made.append(args)
        return inference_form(*args)

    monkeypatch.setattr(module, "inference_form", noting)
    for precision in ("fp32", "bf16"):
        made.clear()
        encoder = CLIPEncoder(str(tiny_clip)).train()  # it has dropout
        embedder = of(encoder, precision=precision)
        assert not made
        first = embedder.images(paths_in(photos))
        assert torch.equal(embedder.images(paths_in(photos)), first)
        assert torch.equal(next(iter(embedder.stream(photos / "test"))).embeddings, first)
        assert len(made) == 1
        assert encoder.training
        assert not first.requires_grad


def test_numbers_that_are_not_finite_name_their_image(tiny_clip: Path, photos: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    for parameter in encoder.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite, first for item 0; try --precision fp32"):
        of(encoder).images(paths_in(photos))
    with pytest.raises(ModelError, match=r"not finite, first for classa/classa_010\.png"):
        next(of(encoder).stream(photos / "test"))


def test_an_encoder_that_is_there_keeps_its_device_and_its_runtime(tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    runtime = make_runtime("cpu", "bf16", 3)
    assert Embedder(encoder, runtime=runtime).runtime is runtime
    assert Embedder(encoder).runtime.device == torch.device("cpu")
    assert Embedder(encoder).encoder is encoder


# The fingerprint


def test_the_fingerprint_is_a_hash_of_what_the_files_of_a_model_say(tiny_clip: Path) -> None:
    """Computed here from the files alone: so it is the same on every machine."""
    facts = {
        "kind": "projected",
        "pool": "pooler",
        "preprocessing": {
            "color": "RGB", "resize": {"shortest_edge": 32}, "resample": "bicubic",
            "center_crop": {"height": 32, "width": 32}, "scale": 1 / 255,
            "mean": [0.48145466, 0.4578275, 0.40821073],
            "std": [0.26862954, 0.26130258, 0.27577711],
        },
        "settings": {"hidden_size": 32, "image_size": 32, "intermediate_size": 64,
                     "model_type": "clip_vision_model", "num_attention_heads": 2,
                     "num_hidden_layers": 2, "patch_size": 8},  # without CLIP's own defaults
        "version": 2,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    state = load_file(tiny_clip / "model.safetensors")
    for name in sorted(f"backbone.{name}" for name in state):
        if name.startswith(("backbone.vision_model.", "backbone.visual_projection.")):
            values = state[name.removeprefix("backbone.")]
            digest.update(f"{name} {values.shape}".encode() + values.astype("<f4").tobytes())
    assert of(tiny_clip).fingerprint == digest.hexdigest()[:16]


@pytest.mark.parametrize("lora", [None, 2])
def test_a_checkpoint_an_export_and_the_trained_encoder_have_one_fingerprint(
    settings: Settings, photos: Path, tiny_clip: Path, lora: int | None
) -> None:
    config = TrainConfig(**settings(num_epochs=1, lora_rank=lora))
    trained = lookalike.train(config, progress=SilentProgress())
    assert trained.checkpoint is not None
    checkpoint, folder = str(trained.checkpoint), photos / "export"
    lookalike.export(ExportConfig(model_name=checkpoint, out=str(folder)),
                     progress=SilentProgress())  # fmt: skip
    found = {of(model, precision=precision).fingerprint
             for model in (checkpoint, folder, trained.encoder)
             for precision in ("fp32", "bf16")}  # fmt: skip
    assert len(found) == 1
    assert found != {of(tiny_clip).fingerprint}


def test_lora_counts_as_merged_wherever_it_is_asked_for(tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    plain = of(encoder).fingerprint
    add_lora(encoder, rank=2)
    assert of(encoder).fingerprint == plain  # B is zero
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    pixels = encoder.preprocessing.black(2)
    with torch.no_grad():
        before = encoder(pixels)
        changed = of(encoder).fingerprint
        assert torch.equal(encoder(pixels), before)
        with merged(encoder):
            inside = encoder(pixels)
            assert of(encoder).fingerprint == changed
            assert torch.equal(encoder(pixels), inside)
        assert torch.equal(encoder(pixels), before)
    merge_for_good(encoder)
    assert of(encoder).fingerprint == changed != plain


def test_whatever_changes_an_embedding_changes_the_fingerprint(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(change: Callable[[CLIPEncoder], object], **options: Any) -> str:
        encoder = CLIPEncoder(str(tiny_clip), **options)
        change(encoder)
        return of(encoder).fingerprint

    def one_bit(encoder: CLIPEncoder) -> None:
        weight = encoder.backbone.vision_model.post_layernorm.bias.data
        weight[0] = torch.nextafter(weight[0], torch.tensor(1.0))

    def texts(encoder: CLIPEncoder) -> None:
        encoder.backbone.text_projection.weight.data.zero_()

    def projection(encoder: CLIPEncoder) -> None:
        encoder.backbone.visual_projection.weight.data.zero_()

    def folder_with(file: str, **changes: Any) -> str:
        folder = tmp_path / f"{file}-{next(iter(changes))}"
        folder.mkdir()
        for path in tiny_clip.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        document = json.loads((folder / file).read_text())
        for key, value in changes.items():
            document[key] = {**document[key], **value} if isinstance(value, dict) else value
        (folder / file).write_text(json.dumps(document))
        return of(folder).fingerprint

    same = of(tiny_clip).fingerprint
    assert changed(lambda _: None) == same
    assert changed(texts) == same
    pooled = changed(lambda _: None, embedding="pooled")
    assert changed(projection, embedding="pooled") == pooled
    others = [
        changed(one_bit),
        changed(projection),
        pooled,
        folder_with("preprocessor_config.json", image_mean=[0.5, 0.5, 0.5]),
        folder_with("preprocessor_config.json", resample=2),
        folder_with("preprocessor_config.json", size={"shortest_edge": 40}),
        folder_with("config.json", vision_config={"hidden_act": "gelu"}),
    ]
    monkeypatch.setattr(fingerprint, "EMBEDDING_VERSION", 3)
    others.append(of(tiny_clip).fingerprint)
    assert len({same, *others}) == 1 + len(others)


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (lambda: ViTModel(ViTConfig(**VISION)), {"pooler_act": "relu"}),
        (lambda: DINOv3ViTModel(DINOv3ViTConfig(**VISION)), {"rope_theta": 7.0}),
        (lambda: ResNetModel(ResNetConfig(**RESNET)), {"downsample_in_bottleneck": True}),
    ],
)
def test_settings_that_leave_no_trace_in_the_weights_change_the_fingerprint(
    tmp_path: Path, make: Callable[[], Any], changes: dict[str, Any]
) -> None:
    folder = saved(tmp_path, make())
    before, file = of(folder).fingerprint, folder / "config.json"
    document = json.loads(file.read_text())
    nothing = {"attention_dropout": 0.5, "dtype": "bfloat16", "pruned_heads": {"0": [1]}}
    for more, is_same in ((changes, False), (nothing, True)):
        file.write_text(json.dumps(document | more))
        assert (of(folder).fingerprint == before) is is_same


def test_the_weights_stay_as_they_are_while_the_fingerprint_is_computed(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As other threads embed with them."""
    encoder = CLIPEncoder(str(tiny_clip))
    add_lora(encoder, rank=2)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    during: list[bool] = []
    array = np.ascontiguousarray

    def looking(values: Any) -> Any:
        now = encoder.state_dict()
        during.append(all(torch.equal(now[name], tensor) for name, tensor in before.items()))
        return array(values)

    monkeypatch.setattr(np, "ascontiguousarray", looking)
    assert of(encoder).fingerprint
    assert len(during) > 10
    assert all(during)


def test_a_checkpoint_of_a_model_that_changes_its_settings_has_the_fingerprint_of_its_folder(
    tmp_path: Path, settings: Settings
) -> None:
    folder = models.levit(tmp_path)
    trained = lookalike.train(TrainConfig(**settings(model_name=folder, train_size=None)),
                              progress=SilentProgress())  # fmt: skip
    exported = tmp_path / "exported"
    lookalike.export(ExportConfig(model_name=str(trained.checkpoint), out=str(exported)),
                     progress=SilentProgress())  # fmt: skip
    found = {of(model).fingerprint for model in (str(trained.checkpoint), exported,
                                                 trained.encoder)}  # fmt: skip
    assert len(found) == 1


def test_running_statistics_count_and_a_pooler_that_is_passed_by_does_not(tmp_path: Path) -> None:
    resnet = CLIPEncoder(str(saved(tmp_path / "resnet", ResNetModel(ResNetConfig(**RESNET)))))
    before = of(resnet).fingerprint
    for name, buffer in resnet.named_buffers():
        if "running_mean" in name:
            buffer.add_(0.1)
    assert of(resnet).fingerprint != before
    # Its pooler's weights are missing, so they are random each time it is loaded.
    vit = saved(tmp_path / "vit", ViTModel(ViTConfig(**VISION), add_pooling_layer=False))
    assert of(vit).fingerprint == of(vit).fingerprint


def test_a_vision_tower_with_its_projection_is_the_same_model_as_with_texts(
    tiny_clip: Path, tmp_path: Path
) -> None:
    whole = CLIPModel.from_pretrained(tiny_clip)
    own: Any = whole.config.vision_config
    config = CLIPVisionConfig(**own.to_dict() | {"projection_dim": 24})
    vision = CLIPVisionModelWithProjection(config)
    names = vision.state_dict().keys()
    vision.load_state_dict({n: t for n, t in whole.state_dict().items() if n in names})
    folder = saved(tmp_path, vision)
    pixels = CLIPEncoder(str(tiny_clip)).preprocessing.black(1)
    assert torch.equal(of(folder).pixels(pixels), of(tiny_clip).pixels(pixels))
    assert of(folder).fingerprint == of(tiny_clip).fingerprint


# Files of embeddings tell whose they are


@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_embeddings_of_two_models_are_not_compared(
    embedder: Embedder, tiny_clip: Path, photos: Path, tmp_path: Path, ending: str
) -> None:
    pooled = of(tiny_clip, embedding="pooled")
    options: dict[str, Any] = {}
    for side, maker in (("query", embedder), ("gallery", pooled)):
        images = load_unlabelled(photos / side)
        path = tmp_path / f"{side}.{ending}"
        rows = embedder.images(images.paths)  # of one width: only what is written beside tells
        save_embeddings(path, rows, images, maker.facts())
        options |= {side: str(photos / side), f"{side}_embeddings": str(path)}
    config = lookalike.EvaluateConfig(**options, out=str(tmp_path / "out"), report=False)
    words = rf"query\.{ending} of .*projected 24-d, fingerprint {embedder.fingerprint}\).* and .*"
    words += rf"gallery\.{ending} of .*{pooled.fingerprint}\)"
    with pytest.raises(DataError, match=words):
        lookalike.evaluate(config, progress=SilentProgress())
    query, gallery = (tmp_path / f"{side}.{ending}" for side in ("query", "gallery"))
    assert embedder_of_both(query, query) == json.loads(json.dumps(embedder.facts()))
    # What nobody tells of is taken, as other tools' files are.
    images = load_unlabelled(photos / "gallery")
    save_embeddings(gallery, embedder.images(images.paths), images)
    assert embedder_of_both(query, gallery) is None
    lookalike.evaluate(config, progress=SilentProgress())


def test_a_json_file_of_somebody_elses_beside_an_array_means_nothing(tmp_path: Path) -> None:
    for content in ("", "[]", "{}", '{"embedder": 3}', '{"embedder": {"fingerprint": "a"}}'):
        (tmp_path / "x.json").write_text(content)
        assert embedder_of_both(tmp_path / "x.npy", tmp_path / "x.npy") is None


def test_evaluation_writes_whose_embeddings_it_saves(
    settings: Settings, photos: Path, embedder: Embedder
) -> None:
    options = {name: value for name, value in settings(save_embeddings="npy").items()
               if name not in ("train", "learning_rate")}  # fmt: skip
    lookalike.evaluate(lookalike.EvaluateConfig(**options), progress=SilentProgress())
    path = photos / "out/results/embeddings_epoch_00_test.npy"
    facts = embedder_of_both(path, path)
    assert facts is not None
    assert facts["fingerprint"] == embedder.fingerprint
    assert (facts["embedding"], facts["dim"]) == ("projected", 24)
