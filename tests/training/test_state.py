"""Training state on disk: everything comes back, and a pickle that would run code is refused."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from ssat_ray.training.state import NAME, drop_state, load_state, save_state


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_round_trip_of_tensors_and_plain_values(tmp_path: Path) -> None:
    model = torch.nn.BatchNorm2d(3)
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(2, 3, 2, 2)).square().sum().backward()
    optimiser.step()
    state = {
        "step": 7,
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "rule": {"best": float("-inf"), "history": [(10, 50.0)], "plateau_step": None},
        "bf16": torch.tensor([1.5], dtype=torch.bfloat16),
    }
    save_state(tmp_path / "new" / "folder", state)
    found = load_state(tmp_path / "new" / "folder")
    assert found is not None and found["step"] == 7 and found["rule"] == state["rule"]
    assert torch.equal(found["bf16"], state["bf16"]) and found["bf16"].dtype == torch.bfloat16
    for key, value in model.state_dict().items():
        assert torch.equal(found["model"][key], value) and found["model"][key].dtype == value.dtype
    torch.testing.assert_close(found["optimiser"], state["optimiser"], rtol=0, atol=0)


def test_saving_again_replaces_and_leaves_one_file(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    for step in (1, 2):
        save_state(tmp_path, {"step": step})
    assert load_state(tmp_path) == {"step": 2} and os.listdir(tmp_path) == [NAME]
    drop_state(tmp_path)
    drop_state(tmp_path)
    assert load_state(tmp_path) is None


@pytest.mark.parametrize("write", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o, 2))])
def test_a_malicious_pickle_is_refused_before_it_runs(tmp_path: Path, write) -> None:
    target = tmp_path / "made-by-the-pickle"
    write({"step": Malicious(target)}, tmp_path / NAME)
    with pytest.raises(pickle.UnpicklingError):
        load_state(tmp_path)
    assert not target.exists()
    torch.load(tmp_path / NAME, weights_only=False) if write is torch.save else pickle.loads(
        (tmp_path / NAME).read_bytes()
    )
    assert target.exists(), "the pickle was not malicious, so the test proves nothing"
