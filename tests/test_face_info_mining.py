"""Face Info Mining: what it measures does not depend on the pose, and what is masked does not matter."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText

import modeling_emo_llama  # noqa: F401  registers the classes
from modeling_emo_llama.face_info_mining import sample_patches, upright_shape

SIDE = 4  # patches a side


@pytest.fixture(scope="module")
def mining(tiny_checkpoint):
    return AutoModelForImageTextToText.from_pretrained(tiny_checkpoint).model.face_info_mining.eval()


def shapes(faces: int, seed: int = 0) -> torch.Tensor:
    """Points of faces whose eyes stand apart, `(faces, 68, 2)` in 0..1."""
    points = torch.rand(faces, 68, 2, generator=torch.Generator().manual_seed(seed)) * 0.2 + 0.4
    points[:, 36:42, 0] -= 0.2
    points[:, 42:48, 0] += 0.2
    return points


def priors(pictures: int, faces: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(pictures, faces, 2, generator=generator) * 0.3
    return {
        "patches": torch.randn(pictures, SIDE**2, 32, generator=generator),
        "face_boxes": torch.cat([corners, corners + 0.5], -1),
        "face_landmarks": shapes(pictures * faces, seed).view(pictures, faces, 68, 2),
        "face_embeddings": torch.randn(pictures, faces, 128, generator=generator),
        "face_mask": torch.ones(pictures, faces, dtype=torch.bool),
    }


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 1000),
    angle=st.floats(-math.pi, math.pi),
    scale=st.floats(0.1, 500),
    shift=st.tuples(st.floats(-100, 100), st.floats(-100, 100)),
)
def test_upright_shape_forgets_place_size_and_roll(seed, angle, scale, shift):
    points = shapes(1, seed).double()
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]).double()
    moved = scale * points @ turn + torch.tensor(shift).double()
    torch.testing.assert_close(upright_shape(moved), upright_shape(points), atol=1e-6, rtol=0)


def test_upright_shape_is_measured_in_eye_distances():
    shape = upright_shape(shapes(3))
    torch.testing.assert_close(shape[:, 36:42].mean(1), torch.tensor([[-0.5, 0.0]]).expand(3, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(shape[:, 42:48].mean(1), torch.tensor([[0.5, 0.0]]).expand(3, 2), atol=1e-5, rtol=0)
    lower = shapes(1)
    lower[:, 8, 1] += 0.3  # the chin
    assert upright_shape(lower)[0, 8, 1] > upright_shape(shapes(1))[0, 8, 1], "y still points down"
    assert upright_shape(torch.zeros(1, 68, 2)).isfinite().all(), "as where there is no face"


def test_sample_patches_is_exact_at_centres_and_linear_between():
    patches = torch.randn(2, SIDE, SIDE, 3)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    centres = (torch.stack([columns, rows], -1).view(1, -1, 2).expand(2, -1, -1) + 0.5) / SIDE
    torch.testing.assert_close(sample_patches(patches, centres), patches.flatten(1, 2))

    between = torch.tensor([[[1.0, 0.5]]]).expand(2, 1, 2) / SIDE  # in the first row, midway between two patches
    torch.testing.assert_close(sample_patches(patches, between)[:, 0], (patches[:, 0, 0] + patches[:, 0, 1]) / 2)
    outside = torch.tensor([[[-0.3, 1.4]]]).expand(2, 1, 2)  # a box may reach beyond the picture
    torch.testing.assert_close(sample_patches(patches, outside)[:, 0], patches[:, -1, 0])


@pytest.mark.parametrize("faces", [1, 3])
def test_number_of_clue_tokens_is_fixed(mining, faces):
    inputs = priors(2, faces)
    inputs["face_mask"][0] = False
    clues = mining(**inputs)
    assert clues.shape == (2, 8, 64) and clues.isfinite().all()


@pytest.mark.parametrize("name", ["face_boxes", "face_landmarks", "face_embeddings"])
def test_only_what_is_not_masked_matters(mining, name):
    inputs = priors(1, 1)
    other = inputs | {name: priors(1, 1, seed=1)[name]}
    assert (mining(**inputs) - mining(**other)).abs().max() > 1e-3
    nobody = {"face_mask": torch.zeros(1, 1, dtype=torch.bool)}
    torch.testing.assert_close(mining(**inputs | nobody), mining(**other | nobody), atol=0, rtol=0)


def test_no_face_token_speaks_only_without_a_face(mining):
    inputs = priors(2, 2)
    inputs["face_mask"] = torch.tensor([[True, False], [False, False]])
    before = mining(**inputs)
    other = copy.deepcopy(mining)
    torch.nn.init.normal_(other.no_face)
    after = other(**inputs)
    torch.testing.assert_close(after[0], before[0], atol=0, rtol=0)
    assert (after[1] - before[1]).abs().max() > 1e-3


def test_several_faces(mining):
    inputs = priors(1, 3)
    alone = {name: tensor if name == "patches" else tensor[:, :1] for name, tensor in inputs.items()}
    padded = inputs | {"face_mask": torch.tensor([[True, False, False]])}
    torch.testing.assert_close(mining(**padded), mining(**alone), atol=1e-5, rtol=0)
    everybody = mining(**inputs)
    assert (everybody - mining(**padded)).abs().max() > 1e-4, "the other faces are read"
    order = [0, 2, 1]
    turned = {name: tensor if name == "patches" else tensor[:, order] for name, tensor in inputs.items()}
    torch.testing.assert_close(mining(**turned), everybody, atol=1e-5, rtol=0)


def test_pictures_do_not_see_each_other(mining):
    inputs = priors(3, 2)
    inputs["face_mask"][1] = False
    alone = torch.cat([mining(**{name: tensor[i : i + 1] for name, tensor in inputs.items()}) for i in range(3)])
    torch.testing.assert_close(mining(**inputs), alone, atol=1e-5, rtol=0)


def test_statistics_standardise_the_priors(mining):
    mining = copy.deepcopy(mining)
    faces = priors(200, 1)
    mining.set_prior_statistics(faces["face_landmarks"][:, 0] * 224, faces["face_embeddings"][:, 0])  # pixels
    seen = {}
    for name, layer in [("embedding", mining.embedding), ("mouth", mining.shapes["mouth"])]:
        layer.register_forward_hook(lambda layer, inputs, output, name=name: seen.update({name: inputs[0]}))
    mining(**faces)
    for name, width in [("embedding", 128), ("mouth", 2 * 20)]:
        assert seen[name].shape == (200, width)
        torch.testing.assert_close(seen[name].mean(0), torch.zeros(width), atol=0.05, rtol=0)
        torch.testing.assert_close(seen[name].std(0), torch.ones(width), atol=0.05, rtol=0)


def test_evidence_is_dropped_out_in_training_alone(mining):
    mining, inputs = copy.deepcopy(mining), priors(2, 1)
    torch.testing.assert_close(mining(**inputs), mining(**inputs), atol=0, rtol=0)
    mining.evidence_dropout.train()
    assert (mining(**inputs) - mining(**inputs)).abs().max() > 1e-3


def test_gradients_reach_every_parameter_at_once(mining):
    mining = copy.deepcopy(mining)
    inputs = priors(2, 1)
    inputs["face_mask"][1] = False
    mining(**inputs).square().sum().backward()
    idle = [name for name, p in mining.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle
    assert all(p.grad.isfinite().all() for p in mining.parameters())
