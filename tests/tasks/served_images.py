"""The served model of images in each of its forms, and images to ask it about. Shared by several test modules."""

from pathlib import Path

import pytest

from tasks import fill_image, registry
from tasks.artifacts import Store
from tests.tasks import drawn_images
from tests.tasks import small_image_model as small

NAMES = ["-".join(form) for form in small.FORMS]
IMAGES = drawn_images.drawn(4, *small.SHAPE, seed=3)
PATCHES = small.GRID[0] * small.GRID[1]


def folder_of(root: Path, form: tuple[str, str]) -> Path:
    """A registered model's folder, with nothing of MLflow."""
    target = root / "-".join(form)
    registry._write_folder(target, "small", dict(zip(registry.PARENTS, small.parents(Store(root / "store"), form))))
    return target / "model"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    for form in small.FORMS:
        (root / "-".join(form)).mkdir()
    return {form: folder_of(root, form) for form in small.FORMS}


@pytest.fixture(scope="module")
def models(folders):
    return {form: fill_image.FillImage().open(folder) for form, folder in folders.items()}


@pytest.fixture(scope="module")
def model(models):
    return models["payload", "tokens"]


forms = pytest.mark.parametrize("form", small.FORMS, ids=NAMES)
