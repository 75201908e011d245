"""The sample on which children get warm is a checkpoint like any other."""

import io

import pytest
import torch
import yaml

from ckptd.catalog.describe import describe_opened
from ckptd.catalog.description import SidecarStatus
from ckptd.daemon import sample
from ckptd.daemon.child import Sample
from ckptd.validators.findings import Severity
from ckptd.validators.inspection import Safety


def test_torch_loads_the_sample() -> None:
    loaded = torch.load(io.BytesIO(sample.checkpoint()), weights_only=True)
    assert loaded["epoch"] == 1
    assert len(loaded["state_dict"]) == 12
    assert loaded["state_dict"]["model.encoder.layer3.weight"].tolist() == [[1, 2], [3, 3]]


@pytest.mark.parametrize("document", [sample.SIDECAR, sample.CONFIG])
def test_sidecar_and_config_are_yaml(document: bytes) -> None:
    assert yaml.safe_load(document)["exp_name"] == "sample"


def test_describing_the_sample_takes_the_way_of_a_good_file_to_its_end() -> None:
    files = Sample()
    description = describe_opened(files.request, files.files)
    assert [found for found in description.findings if found.severity is Severity.ERROR] == []
    assert description.inspection.safety is Safety.SAFE
    assert len(description.tensors) == 12
    assert description.sidecar is not SidecarStatus.INVALID
    assert description.config is not None
