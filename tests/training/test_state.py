"""Training state on disk: everything comes back, and a pickle that would run code is refused."""

import hashlib
import io
import os
import pickle
from pathlib import Path

import pytest
import torch

from ssat_ray.training.state import States


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
    States(tmp_path / "new" / "folder").save(7, state)
    found = States(tmp_path / "new" / "folder").load()
    assert found is not None and found["step"] == 7 and found["rule"] == state["rule"]
    assert torch.equal(found["bf16"], state["bf16"]) and found["bf16"].dtype == torch.bfloat16
    for key, value in model.state_dict().items():
        assert torch.equal(found["model"][key], value) and found["model"][key].dtype == value.dtype
    torch.testing.assert_close(found["optimiser"], state["optimiser"], rtol=0, atol=0)


def test_the_newest_stay_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    states = States(tmp_path / "job", keep=2)
    assert states.load() is None
    for step in (9, 10, 100):
        states.save(step, {"step": step, "more": torch.arange(1000)})
    files = sorted((tmp_path / "job").iterdir())
    assert [f.name for f in files] == ["0000000010.pt", "0000000100.pt"]
    found = states.load()
    assert found is not None and found["step"] == 100
    whole = files[1].read_bytes()
    for damage in (whole[:-200], b"", bytes(len(whole)), b"cut short", whole[:-1] + b"?"):
        files[1].write_bytes(damage)
        found = States(tmp_path / "job").load()
        assert found is not None and found["step"] == 10
    (tmp_path / "job" / ".0000000200.pt.abc.tmp").write_bytes(b"of a writer that was killed")
    states.drop()
    states.drop()
    assert states.load() is None and not (tmp_path / "job").exists()


def test_a_state_that_another_writer_has_removed_is_passed_over(tmp_path: Path) -> None:
    """Between the listing and the reading, as where the workers of a lost head still write."""

    class Raced(States):
        def _names(self) -> list[str]:
            found = super()._names()
            (tmp_path / found[-1]).unlink()
            return found

    for step in (10, 20):
        States(tmp_path).save(step, {"step": step})
    assert (found := Raced(tmp_path).load()) is not None and found["step"] == 10


@pytest.mark.parametrize("damaged", [(20, 30), (30,)])
def test_states_after_damaged_ones_are_kept(tmp_path: Path, damaged: tuple[int, ...]) -> None:
    """A run that went on from an earlier state writes lower numbers than those of the damaged ones."""
    states = States(tmp_path, keep=2)
    for step in (20, 30):
        states.save(step, {"step": step})
    for step in damaged:
        (tmp_path / f"{step:010d}.pt").write_bytes(b"damaged")
    found = states.load()
    assert (0 if found is None else found["step"]) == (0 if 20 in damaged else 20)
    first = 15 if 20 in damaged else 25
    for step in (first, first + 1):
        states.save(step, {"step": step})
        assert (again := States(tmp_path).load()) is not None and again["step"] == step
    assert sorted(int(path.stem) for path in tmp_path.iterdir()) == [first, first + 1]


@pytest.mark.parametrize("write", [torch.save, lambda o, f: f.write(pickle.dumps(o, 2))])
def test_a_malicious_pickle_is_refused_before_it_runs(tmp_path: Path, write) -> None:
    """With the right checksum before it."""
    target, content = tmp_path / "made-by-the-pickle", io.BytesIO()
    write({"step": Malicious(target)}, content)
    data = content.getvalue()
    (tmp_path / "0000000001.pt").write_bytes(hashlib.sha256(data).digest() + data)
    with pytest.raises(pickle.UnpicklingError):
        States(tmp_path).load()
    assert not target.exists()
    content.seek(0)
    torch.load(content, weights_only=False) if write is torch.save else pickle.loads(data)
    assert target.exists(), "the pickle was not malicious, so the test proves nothing"
