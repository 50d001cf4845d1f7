"""CLIPEncoder on tiny models of several families, against what Transformers itself computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.models import (
    SIZE_PX,
    SQUARE,
    TOWER,
    VISION,
    clip_processor,
    convnext,
    dinov2,
    ijepa,
    levit,
    save,
    siglip,
    siglip_vision,
    vit,
    vit_msn,
)
from helpers.photos import draw
from PIL import Image
from torch.nn.functional import normalize
from transformers import (
    Aimv2VisionConfig,
    Aimv2VisionModel,
    AutoConfig,
    AutoImageProcessor,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from lookalike.data.transforms import preprocess
from lookalike.errors import CheckpointError, ConfigError, ModelError
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.loading.folder import _side_files_from_hub
from lookalike.model.preprocessing import share_of_side
from lookalike.model.pretrained import CHECKPOINT_FORMAT


def pixels_of(encoder: CLIPEncoder, images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([preprocess(image, encoder.preprocessing) for image in images])


@pytest.fixture
def images() -> list[Image.Image]:
    return [draw(label, 0, size) for label, size in enumerate([(40, 36), (36, 70), (64, 33)])]


def test_projected_clip_embeddings_are_transformers_own(
    tiny_clip: Path, images: list[Image.Image]
) -> None:
    encoder = CLIPEncoder(str(tiny_clip)).eval()
    processor = AutoImageProcessor.from_pretrained(tiny_clip, backend="pil")
    inputs = processor(images, return_tensors="pt")
    with torch.inference_mode():
        theirs = CLIPModel.from_pretrained(tiny_clip).eval().get_image_features(**inputs)
        expected = normalize(theirs.pooler_output, dim=-1)
        ours = encoder(pixels_of(encoder, images))
        from_pixel_values = encoder(inputs["pixel_values"])
    assert encoder.kind == "projected"
    assert ours.shape == (3, 24)
    assert encoder.dim == 24
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(from_pixel_values, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(3))


def test_pooled_clip_embeddings_are_the_vision_towers(
    tiny_clip: Path, images: list[Image.Image]
) -> None:
    encoder = CLIPEncoder(str(tiny_clip), embedding="pooled").eval()
    inputs = AutoImageProcessor.from_pretrained(tiny_clip, backend="pil")(
        images, return_tensors="pt"
    )
    with torch.inference_mode():
        tower = CLIPModel.from_pretrained(tiny_clip).eval().vision_model
        expected = normalize(tower(**inputs).pooler_output, dim=-1)
        ours = encoder(pixels_of(encoder, images))
    assert encoder.kind == "pooled"
    assert ours.shape == (3, 32)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def clip_vision(folder: Path) -> str:
    model = CLIPVisionModel(CLIPVisionConfig(**VISION, intermediate_size=64))
    return save(folder, model, clip_processor())


def clip(folder: Path) -> str:
    tower = {**TOWER, "intermediate_size": 64}
    config = CLIPConfig(vision_config={**VISION, **tower}, text_config={**tower, "vocab_size": 9})
    return save(folder, CLIPModel(config), clip_processor())


@pytest.mark.parametrize("make", [dinov2, vit, convnext, siglip_vision, clip_vision])
def test_vision_only_models_give_their_own_pooled_output(
    make: Callable[[Path], str], tmp_path: Path, images: list[Image.Image]
) -> None:
    from transformers import AutoModel

    folder = make(tmp_path / "model")
    encoder = CLIPEncoder(folder).eval()
    inputs = AutoImageProcessor.from_pretrained(folder, backend="pil")(images, return_tensors="pt")
    with torch.inference_mode():
        output = AutoModel.from_pretrained(folder).eval()(**inputs)
        ours = encoder(pixels_of(encoder, images))
    assert encoder.kind == "pooled"
    expected = normalize(output.pooler_output.flatten(1), dim=-1)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_a_vision_tower_saved_with_its_projection_projects(
    tmp_path: Path, images: list[Image.Image]
) -> None:
    config = CLIPVisionConfig(**VISION, intermediate_size=64, projection_dim=12)
    model = CLIPVisionModelWithProjection(config).eval()
    encoder = CLIPEncoder(save(tmp_path / "model", model, clip_processor())).eval()
    with torch.inference_mode():
        pixels = pixels_of(encoder, images)
        normalised = (pixels * encoder.preprocessing.scale - encoder._mean) / encoder._std
        expected = normalize(model(pixel_values=normalised).image_embeds, dim=-1)
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-5, rtol=0)
    assert encoder.kind == "projected"
    assert encoder.dim == 12


def test_siglip_keeps_its_text_tower_frozen(tmp_path: Path, images: list[Image.Image]) -> None:
    encoder = CLIPEncoder(siglip(tmp_path / "model")).eval()
    with torch.inference_mode():
        assert encoder(pixels_of(encoder, images)).shape == (3, 32)
    trained = [name for name, _ in encoder.trainable_parameters()]
    assert trained
    assert all(name.startswith("backbone.vision_model.") for name in trained)
    assert encoder.backbone.text_model is not None


# Images of another size than the model's own


def transformers_own(model: Any, pixels: torch.Tensor, embedding: str, **options: bool) -> Any:
    """What `CLIPEncoder` wraps, called as Transformers documents it."""
    if hasattr(model, "get_image_features") and embedding == "projected":
        return model.get_image_features(pixel_values=pixels, **options).pooler_output
    tower = model.vision_model if hasattr(model, "text_model") else model
    return tower(pixel_values=pixels, **options).pooler_output


TAKE_THE_OPTION = [clip, clip_vision, siglip, siglip_vision, vit]


@pytest.mark.parametrize("embedding", ["projected", "pooled"])
@pytest.mark.parametrize("make", [*TAKE_THE_OPTION, dinov2, convnext])
def test_another_size_is_embedded_as_transformers_does_and_the_own_size_to_the_last_bit(
    make: Callable[[Path], str], embedding: Any, tmp_path: Path
) -> None:
    from transformers import AutoModel

    folder = make(tmp_path / "model")
    encoder = CLIPEncoder(folder, embedding=embedding)
    model = AutoModel.from_pretrained(folder).eval()
    for side in (SIZE_PX, 48 if make is convnext else 16, 64):
        assert encoder.preprocessing_at(side).height == side
        options = {"interpolate_pos_encoding": True} if make in TAKE_THE_OPTION else {}
        pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
        with torch.inference_mode():
            own = transformers_own(model, pixels, embedding, **(options if side != SIZE_PX else {}))
            assert torch.equal(encoder(pixels), normalize(own.flatten(1), dim=-1))


def test_gradients_reach_the_position_embeddings_of_another_size(tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    encoder(torch.rand(2, 3, 16, 16))[:, 0].sum().backward()
    gradients = {name: p.grad for name, p in encoder.trainable_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    position = gradients["backbone.vision_model.embeddings.position_embedding.weight"]
    assert position is not None
    assert int((position != 0).any(dim=1).sum()) > 4 + 1  # spread from 2 x 2 places over 4 x 4


@pytest.mark.parametrize("make", [clip, siglip, dinov2, vit])
def test_a_size_that_leaves_part_of_a_patch_names_the_sizes_nearby(
    make: Callable[[Path], str], tmp_path: Path
) -> None:
    encoder = CLIPEncoder(make(tmp_path / "model"))
    with pytest.raises(
        ConfigError, match=r"train_size is 20 px.*patches of 8 px; set it to 16 or 24"
    ):
        encoder.preprocessing_at(20)
    with pytest.raises(ConfigError, match=r"set it to 8$"):
        encoder.preprocessing_at(7)


def test_a_model_for_images_that_are_not_square_is_refused_square_ones(tmp_path: Path) -> None:
    model = ViTModel(ViTConfig(**{**VISION, "image_size": (32, 16)}, intermediate_size=64))
    processor = ViTImageProcessorPil(size={"height": 32, "width": 16})
    encoder = CLIPEncoder(save(tmp_path / "model", model, processor))
    with pytest.raises(ModelError, match="takes images of 16x32 px, which are not square"):
        encoder.preprocessing_at(32)


def test_a_convolutional_model_takes_any_size(tmp_path: Path) -> None:
    assert CLIPEncoder(convnext(tmp_path / "model")).preprocessing_at(45).width == 45


@pytest.mark.parametrize(
    ("side", "patch", "share", "px"),
    [
        (224, 14, 0.5, 112),
        (224, 16, 0.5, 112),
        (224, 32, 0.5, 128),  # halfway between 3 and 4 patches
        (336, 14, 0.5, 168),
        (336, 14, 0.33, 112),  # 7.9 patches
        (224, 14, 0.72, 168),  # 11.5 patches
        (384, 14, 1.0, 384),  # which leaves part of a patch, as the model itself does
        (224, 16, 0.001, 16),
        (224, None, 0.5, 128),  # 3.5 times 32 px
        (288, None, 0.75, 224),
        (32, None, 0.1, 32),
    ],
)
def test_a_share_of_the_models_side_becomes_whole_patches(
    side: int, patch: int | None, share: float, px: int
) -> None:
    attention = {} if patch is None else {"patch_size": patch, "num_attention_heads": 2}
    assert share_of_side(SimpleNamespace(**attention), side, share) == px
    two_towers = SimpleNamespace(vision_config=SimpleNamespace(**attention))
    assert share_of_side(two_towers, side, share) == px


@pytest.mark.parametrize("make", [clip, siglip, dinov2, vit, convnext])
def test_an_encoder_knows_what_a_size_for_training_means_to_it(
    make: Callable[[Path], str], tmp_path: Path
) -> None:
    encoder = CLIPEncoder(make(tmp_path / "model"))
    half = 32 if make is convnext else 16
    assert [encoder.train_side(size) for size in (None, 0.5, 1, 24)] == [None, half, SIZE_PX, 24]
    assert encoder.preprocessing_at(half).width == half
    assert encoder.preprocessing_at(SIZE_PX) == encoder.preprocessing


def test_a_model_for_one_size_only_is_refused_another(tmp_path: Path) -> None:
    encoder = CLIPEncoder(levit(tmp_path / "model"))
    assert encoder.preprocessing_at(SIZE_PX) == encoder.preprocessing
    with pytest.raises(ModelError, match=r"cannot take images of 64x64 px.*leave train_size out"):
        encoder.preprocessing_at(64)


def test_exactly_what_the_embedding_depends_on_is_trained(
    tiny_clip: Path, images: list[Image.Image]
) -> None:
    for embedding, projection_is_trained in (("projected", True), ("pooled", False)):
        encoder = CLIPEncoder(str(tiny_clip), embedding=embedding)  # type: ignore[arg-type]
        encoder(pixels_of(encoder, images)).sum().backward()
        trained = dict(encoder.trainable_parameters())
        assert all(parameter.grad is not None for parameter in trained.values())
        assert ("backbone.visual_projection.weight" in trained) is projection_is_trained
        assert not any("text" in name or "logit" in name for name in trained)


def test_a_pooler_that_came_without_weights_is_not_used(
    tmp_path: Path, images: list[Image.Image]
) -> None:
    model = ViTModel(ViTConfig(**VISION, intermediate_size=64), add_pooling_layer=False).eval()
    encoder = CLIPEncoder(save(tmp_path / "model", model, ViTImageProcessorPil(size=SQUARE))).eval()
    pixels = pixels_of(encoder, images)
    normalised = (pixels * encoder.preprocessing.scale - encoder._mean) / encoder._std
    with torch.inference_mode():
        expected = normalize(model(pixel_values=normalised).last_hidden_state[:, 0], dim=-1)
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-5, rtol=0)


def aimv2_without_head(folder: Path) -> str:
    config = Aimv2VisionConfig(**VISION, intermediate_size=64, use_head=False)
    return save(folder, Aimv2VisionModel(config), ViTImageProcessorPil(size=SQUARE))


def siglip_vision_without_head(folder: Path) -> str:
    config = SiglipVisionConfig(**VISION, intermediate_size=64, vision_use_head=False)
    return save(folder, SiglipVisionModel(config), SiglipImageProcessorPil(size=SQUARE))


@pytest.mark.parametrize(
    ("make", "has_class_token"),
    [(ijepa, False), (aimv2_without_head, False), (siglip_vision_without_head, False),
     (vit_msn, True)],
)  # fmt: skip
def test_without_pooled_output_the_class_token_is_taken_or_the_mean_of_all_patches(
    make: Callable[[Path], str], has_class_token: bool, tmp_path: Path
) -> None:
    from transformers import AutoModel

    folder = make(tmp_path / "model")
    pixels = torch.randn(3, 3, SIZE_PX, SIZE_PX)
    with torch.inference_mode():
        found = CLIPEncoder(folder)(pixels)
        tokens = AutoModel.from_pretrained(folder).eval()(pixel_values=pixels).last_hidden_state
    assert tokens.shape[1] == (SIZE_PX // 8) ** 2 + has_class_token
    rows = tokens[:, 0] if has_class_token else tokens.mean(dim=1)
    torch.testing.assert_close(found, normalize(rows, dim=-1), atol=1e-6, rtol=0)


def test_a_model_that_embeds_one_image_differently_each_time_is_refused_and_mended_as_it_says(
    tmp_path: Path,
) -> None:
    model = ViTMAEModel(ViTMAEConfig(**VISION, intermediate_size=64)).eval()
    folder = save(tmp_path / "model", model, ViTImageProcessorPil(size=SQUARE))
    with pytest.raises(
        ModelError, match=r"\(vit_mae\) embeds one image differently each time.*config\.json$"
    ):
        CLIPEncoder(folder)
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "vit"}))
    pixels = torch.randn(3, 3, SIZE_PX, SIZE_PX)
    model.config.mask_ratio = 0.0
    with torch.inference_mode():
        rows = model(pixel_values=pixels).last_hidden_state[:, 0]
        found = CLIPEncoder(folder)(pixels)
    torch.testing.assert_close(found, normalize(rows, dim=-1), atol=1e-5, rtol=0)


def test_half_precision_weights_are_loaded_as_float32(tmp_path: Path, tiny_clip: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(tiny_clip, folder)
    CLIPModel.from_pretrained(tiny_clip).half().save_pretrained(folder)
    assert {p.dtype for p in CLIPEncoder(str(folder)).parameters()} == {torch.float32}


def test_one_image_gives_the_same_bits_from_a_folder_and_from_its_checkpoint(
    tiny_clip: Path, tmp_path: Path, images: list[Image.Image]
) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    state = {"format": CHECKPOINT_FORMAT, "epoch": 0, "model": encoder.description()}
    torch.save({**state, "model_state_dict": encoder.state_dict()}, tmp_path / "one.pth")
    again = CLIPEncoder(str(tmp_path / "one.pth"))
    for image in images:  # matrices of one row round by where in memory the weights begin
        pixels = pixels_of(encoder, [image])
        embeddings, gradients = [], []
        for one in (encoder, again):
            embeddings.append(one(pixels))
            embeddings[-1][:, :5].sum().backward()
            gradients.append([p.grad for _, p in one.trainable_parameters()])
        assert torch.equal(embeddings[0], embeddings[1])
        assert all(map(torch.equal, *gradients))


def test_embeddings_are_float32_under_autocast(tiny_clip: Path, images: list[Image.Image]) -> None:
    encoder = CLIPEncoder(str(tiny_clip)).eval()
    pixels = pixels_of(encoder, images)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = encoder(pixels)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))


def test_an_encoder_starts_without_dropout_and_measuring_it_switches_none_on(
    tiny_clip: Path, images: list[Image.Image]
) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    pixels = pixels_of(encoder, images)
    with torch.inference_mode():
        assert encoder.dim == 24
        assert torch.equal(encoder(pixels), encoder(pixels))
        assert not any(part.training for part in encoder.modules())
        encoder.train()
        assert not torch.equal(encoder(pixels), encoder(pixels))  # or this test could not fail


def test_gradient_checkpointing_changes_no_gradient(
    tiny_clip: Path, images: list[Image.Image]
) -> None:
    gradients = []
    for checkpointing in (False, True):
        encoder = CLIPEncoder(str(tiny_clip), gradient_checkpointing=checkpointing).train()
        torch.manual_seed(0)  # the same dropout both times
        encoder(pixels_of(encoder, images))[:, 0].sum().backward()
        gradients.append([p.grad for _, p in encoder.trainable_parameters()])
        switched_on = [getattr(m, "gradient_checkpointing", False) for m in encoder.modules()]
        assert any(switched_on) is checkpointing
    torch.testing.assert_close(gradients[0], gradients[1])


def test_gradient_checkpointing_where_there_is_none_is_refused(tmp_path: Path) -> None:
    folder = convnext(tmp_path / "model")
    if CLIPEncoder(folder).backbone.supports_gradient_checkpointing:
        pytest.skip("this release of Transformers checkpoints ConvNeXT")
    with pytest.raises(ModelError, match="no gradient checkpointing"):
        CLIPEncoder(folder, gradient_checkpointing=True)


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    config = BertConfig(**TOWER, intermediate_size=64, vocab_size=30)
    folder = save(tmp_path / "model", BertModel(config), clip_processor())
    with pytest.raises(ModelError, match=r"bert.*does not turn an image"):
        CLIPEncoder(folder)


def test_a_folder_without_weights_says_what_it_needs(tmp_path: Path, tiny_clip: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_clip, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        CLIPEncoder(str(folder))


def test_a_folder_without_a_preprocessor_says_so(tmp_path: Path, tiny_clip: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_clip, folder, ignore=shutil.ignore_patterns("p*processor_config.json"))
    with pytest.raises(ModelError, match=r"no preprocessor_config\.json"):
        CLIPEncoder(str(folder))


def test_weights_that_lack_tensors_are_refused(tmp_path: Path, tiny_clip: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_clip, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"incomplete: 1 tensors.*visual_projection"):
        CLIPEncoder(str(folder))


def test_an_unknown_name_says_how_to_point_at_a_folder() -> None:
    with pytest.raises(ModelError, match=r"nobody/no-such-model.*--model-name"):
        CLIPEncoder("nobody/no-such-model")
    with pytest.raises(ModelError, match="no folder or checkpoint"):
        CLIPEncoder("./no/such/folder")


def test_a_file_that_is_no_checkpoint_is_refused_and_its_code_is_not_run(tmp_path: Path) -> None:
    import pickle

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "trap.pth").write_bytes(pickle.dumps(Trap(), protocol=2))
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "empty.pth").touch()
    for name in ("trap.pth", "other.pth", "empty.pth"):
        with pytest.raises(CheckpointError, match="not a Lookalike checkpoint"):
            CLIPEncoder(str(tmp_path / name))
    assert not (tmp_path / "sprung").exists()


def test_side_files_for_text_search_are_kept(tiny_clip: Path) -> None:
    files = CLIPEncoder(str(tiny_clip)).description()["side_files"]
    assert {"config.json", "tokenizer.json", "preprocessor_config.json"} <= set(files)
    assert json.loads(files["config.json"])["model_type"] == "clip"


# --- The small files of a model from the hub --------------------------------------------------

IMAGES_ONLY = ("config.json", "preprocessor_config.json", "processor_config.json")


class Hub:
    """What `snapshot_download` finds on this disk, and on a hub that may be out of reach."""

    def __init__(self, disk: Path, hub: Path | None) -> None:
        self.disk, self.hub = disk, hub
        self.times_asked = 0

    def snapshot_download(
        self, name: str, *, allow_patterns: list[str], local_files_only: bool = False
    ) -> str:
        assert name == "shop/clip"
        assert "tokenizer.json" in allow_patterns
        if local_files_only:
            return str(self.disk)
        self.times_asked += 1
        if self.hub is None:
            raise OSError("out of reach")
        return str(self.hub)


@pytest.fixture
def used_for_images_only(tiny_clip: Path, tmp_path: Path) -> Path:
    """The folder of a CLIP in the hub's cache, after AutoModel and its processor were loaded."""
    folder = tmp_path / "disk"
    folder.mkdir()
    for name in IMAGES_ONLY:
        if (tiny_clip / name).is_file():
            shutil.copy(tiny_clip / name, folder)
    return folder


def test_a_tokenizer_that_was_never_fetched_is_asked_for_once(
    used_for_images_only: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(used_for_images_only, tiny_clip)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    config = AutoConfig.from_pretrained(tiny_clip)
    assert _side_files_from_hub("shop/clip", config) == tiny_clip
    assert hub.times_asked == 1


def test_images_need_no_tokenizer_where_the_hub_is_out_of_reach(
    used_for_images_only: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(used_for_images_only, None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    config = AutoConfig.from_pretrained(tiny_clip)
    assert _side_files_from_hub("shop/clip", config) == used_for_images_only
    for file in used_for_images_only.glob("p*processor_config.json"):
        file.unlink()
    with pytest.raises(ModelError, match="out of reach"):
        _side_files_from_hub("shop/clip", config)


@pytest.mark.parametrize("complete", [True, False])
def test_a_hub_that_has_nothing_to_add_is_not_asked(
    complete: bool, used_for_images_only: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_clip if complete else used_for_images_only
    hub = Hub(folder, None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    config = AutoConfig.from_pretrained(tiny_clip) if complete else Dinov2Config(**VISION)
    assert _side_files_from_hub("shop/clip", config) == folder
    assert hub.times_asked == 0
