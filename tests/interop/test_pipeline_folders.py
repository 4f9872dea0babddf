"""Folders of pipelines: what is refused, and what is found in them."""

import json
import shutil

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.interop.folders import read_folder, variant_of
from limbeck.interop.pipelines import open_pipeline


@pytest.fixture
def copied(tiny_pipeline, tmp_path):
    def copy(name):
        return shutil.copytree(tiny_pipeline(name), tmp_path / name)

    return copy


def test_folders_that_are_none(tiny_pipeline, copied, tmp_path):
    with pytest.raises(LimbeckError, match="absent is no folder.*nothing is downloaded"):
        open_pipeline(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LimbeckError, match="neither model_index.json .* nor config.json"):
        open_pipeline(tmp_path / "empty")
    with pytest.raises(LimbeckError, match=r"unet is a part of the pipeline .*; give that folder"):
        open_pipeline(tiny_pipeline("ddpm") / "unet")
    with pytest.raises(LimbeckError, match="the model is a int; give a pipeline of diffusers or its folder"):
        open_pipeline(3)
    folder = copied("ddpm")
    index = folder / "model_index.json"
    whole = json.loads(index.read_text())
    for change, message in [
        ({"_class_name": ["mine", "Mine"]}, r"names code of its own as its class \(\['mine', 'Mine'\]\), which is not run"),
        ({"_class_name": "StableDifusionPipeline"}, "unknown class of pipelines.*did you mean 'StableDiffusionPipeline'"),
    ]:
        index.write_text(json.dumps({**whole, **change}))
        with pytest.raises(LimbeckError, match=message):
            open_pipeline(folder)
    index.write_text(json.dumps({**whole, "unet": ["mine", "UNet"]}))
    with pytest.raises(LimbeckError, match="the unet of .* is mine.UNet; only classes of diffusers and transformers"):
        open_pipeline(folder).denoiser()
    index.write_text("{")
    with pytest.raises(LimbeckError, match="model_index.json is no JSON"):
        open_pipeline(folder)


def test_pickles_are_refused_with_how_to_convert(copied):
    folder = copied("ddpm")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(
        LimbeckError,
        match=r"a pickle \(diffusion_pytorch_model.bin\).*UNet2DModel.from_pretrained\('.*', use_safetensors=False",
    ):
        open_pipeline(folder).denoiser()
    weights.with_suffix(".bin").unlink()
    with pytest.raises(LimbeckError, match="holds no weights"):
        open_pipeline(folder).denoiser()


def test_variants_and_shards_are_found(tmp_path):
    for i, (files, variant) in enumerate(
        [
            (["diffusion_pytorch_model.fp16.safetensors"], "fp16"),
            (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"], "fp16"),
            (["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"], None),
            (
                ["diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors"],
                None,
            ),
        ]
    ):
        place = tmp_path / str(i)
        place.mkdir()
        for file in files:
            (place / file).touch()
        assert variant_of(place, "UNet2DModel") == variant


def test_a_bare_model_needs_its_scheduler(tiny_pipeline, tmp_path):
    bare = shutil.copytree(tiny_pipeline("ddpm") / "unet", tmp_path / "bare")
    with pytest.raises(LimbeckError, match="a model without a scheduler.*put its scheduler beside it"):
        open_pipeline(bare)
    shutil.copytree(tiny_pipeline("ddpm") / "scheduler", bare / "scheduler")
    pipeline, whole = open_pipeline(bare), open_pipeline(tiny_pipeline("ddpm"))
    x, t = torch.randn(1, *pipeline.shape), torch.tensor([100.0], dtype=torch.float64)
    assert torch.equal(pipeline.denoiser()(x, t), whole.denoiser()(x, t))
    text = shutil.copytree(tiny_pipeline("stable_diffusion") / "unet", tmp_path / "text")
    shutil.copytree(tiny_pipeline("ddpm") / "scheduler", text / "scheduler")
    with pytest.raises(LimbeckError, match="others need their whole pipeline's folder.*UNet2DModel"):
        open_pipeline(text)


def test_two_experts_without_a_boundary(copied):
    folder = copied("wan_experts")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "boundary_ratio": None}))
    with pytest.raises(LimbeckError, match="a transformer_2, but no boundary_ratio"):
        open_pipeline(folder).denoiser()


def test_words_need_a_text_encoder(copied):
    folder = copied("stable_diffusion")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "text_encoder": [None, None]}))
    with pytest.raises(LimbeckError, match="has no text_encoder, which prompts are encoded with once"):
        open_pipeline(folder).encode_text(["a cat"])


def test_the_digest_sees_every_file(copied):
    folder = copied("ddpm")
    before = read_folder(folder).digest(["unet"])
    assert before == read_folder(folder).digest(["unet"])
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text() + " ")
    assert read_folder(folder).digest(["unet"]) != before
