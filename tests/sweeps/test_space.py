"""Sweep files: every mistake is found before anything starts, and says what is right; points and their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ssat_ray.errors import UserError
from ssat_ray.sweeps.axis import Axis
from ssat_ray.sweeps.space import Space, points, read_sweep, title

GRID: dict[str, Any] = {
    "preset": "digits",
    "row": "lcs-km",
    "seeds": [0, 1],
    "space": {"cluster.k": [5, 10], "select.ratio": [0.1, 0.2, 0.4]},
}
RATIO = {"select.ratio": {"log_uniform": [0.01, 0.5]}}


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """The space of the grid with changes; a change to None takes the key out."""

    def read(*overrides: str, **changes: Any) -> Space:
        tree = {key: value for key, value in {**GRID, **changes}.items() if value is not None}
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return read_sweep(path, overrides)

    return read


def test_a_grid_has_every_combination_in_the_order_of_the_file(read: Any) -> None:
    space = read()
    settings = [(p.settings["cluster.k"], p.settings["select.ratio"]) for p in space.points]
    assert settings == [(k, ratio) for k in (5, 10) for ratio in (0.1, 0.2, 0.4)]
    first = space.points[0]
    assert title(first.settings) == "cluster.k=5 select.ratio=0.1"
    assert first.config.rows == ("lcs-km", "random", "full") and first.config.seeds == (0, 1)
    assert (first.config.cluster.k, first.config.select.ratio) == (5, 0.1)


def test_the_packages_sweep_is_the_one_of_the_documents() -> None:
    space = read_sweep(Path("digits-grid"))
    assert len(space.points) == 20 and len(space.sweep.seeds) == 2
    assert space.base.evaluate.attacks == ("clean", "pgd") and space.base.evaluate.pgd_steps == 40


def test_the_documents_example_is_read(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs/sweeps.md"
    path = tmp_path / "sweep.yaml"
    path.write_text(page.read_text().split("```yaml\n")[1].split("```")[0])
    space = read_sweep(path)
    assert len(space.points) == 20 and space.base.train.max_steps == 400


def test_a_preset_that_lacks_its_paths_may_be_swept_with_them(read: Any) -> None:
    """As those of published data sets, which name no folder."""
    paths = {"data.path": "images", "pool.path": "pool"}
    space = read(preset="cifar10-edm", set=paths)
    assert space.base.data.path == "images" and space.base.pool.path == "pool"
    with pytest.raises(UserError, match=r"data\.path"):
        read(preset="cifar10-edm", set={"pool.path": "pool"})


def test_a_mistake_of_the_preset_is_not_said_of_a_point(read: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train: {lr: -1}")
    with pytest.raises(UserError, match=r"^train\.lr=-1"):
        read(preset="mine.yaml")
    with pytest.raises(UserError, match=r"^space, at select\.ratio=2"):
        read(space={"select.ratio": [2]})


def test_a_name_is_of_the_settings_alone(read: Any) -> None:
    """Whatever the order of keys and points, and wherever the sweep runs."""
    names = {title(p.settings): p.name for p in read().points}
    assert len(set(names.values())) == 6
    turned = dict(reversed(GRID["space"].items()))
    again = read("runtime.actors=1", "runtime.store=other", space=turned, concurrent=3)
    assert {p.name for p in again.points} == set(names.values())
    assert not {p.name for p in read("train.lr=0.05").points} & set(names.values())
    assert not {p.name for p in read(seeds=[0]).points} & set(names.values())


def test_a_point_survives_what_it_is_written_as(read: Any) -> None:
    space = read(space=RATIO, search="random", trials=5)
    for point in space.points:
        assert space.point(yaml.safe_load(yaml.safe_dump(point.settings))).name == point.name


def test_set_is_below_the_command_line_and_both_below_the_space(read: Any) -> None:
    space = read("train.lr=0.03", set={"train.lr": 0.05, "evaluate.pgd_steps": 7})
    assert space.base.train.lr == 0.03 and space.base.evaluate.pgd_steps == 7


def test_the_row_can_be_swept(read: Any) -> None:
    space = read(row=None, space={"row": ["lcs-km", "random"], "select.ratio": [0.1]})
    assert [p.config.rows for p in space.points] == [
        ("lcs-km", "random", "full"),
        ("random", "full"),
    ]


def test_methods_and_layers_have_another_name(read: Any) -> None:
    space = read(row=None, space={"select.method": ["lcs-km", "pcs"], "select.layer": ["logits"]})
    plain = read(row=None, space={"row": ["lcs-km", "pcs"], "embed.layer": ["logits"]})
    assert [p.name for p in space.points] == [p.name for p in plain.points]
    assert title(space.points[1].settings) == "row=pcs embed.layer=logits"
    for fixed in (read(set={"select.layer": "logits"}), read("select.layer=logits")):
        assert fixed.base.embed.layer == "logits"


def test_a_random_search_is_a_function_of_its_seed(read: Any) -> None:
    draw = {"space": RATIO, "search": "random", "trials": 20}
    first, same, other = (read(**draw, search_seed=seed).points for seed in (0, 0, 1))
    assert [p.settings for p in first] == [p.settings for p in same] != [p.settings for p in other]
    assert len({p.name for p in first}) == 20
    assert [p.settings for p in read(**{**draw, "trials": 30}).points[:20]] == [
        p.settings for p in first
    ], "more trials are the same ones and more"


def test_a_bayesian_search_has_no_points_beforehand_but_checks_its_ends(read: Any) -> None:
    assert read(space=RATIO, search="bayesian", trials=5).points == []
    with pytest.raises(UserError, match=r"at select.ratio=2: select.ratio=2"):
        read(space={"select.ratio": {"uniform": [0.1, 2]}}, search="bayesian", trials=5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {}}, "space is empty"),
        ({"space": {"cluster.k": []}}, r"space.cluster.k has no values"),
        ({"space": {"cluster.kk": [5]}}, r"cluster.kk: .*did you mean 'cluster.k'"),
        ({"space": {"select.method": ["pcs"]}}, "not in both"),
        (
            {"space": {"select.layer": ["logits"], "embed.layer": ["logits"]}},
            "select.layer is another name of embed.layer, which is there too",
        ),
        ({"set": {"select.method": "pcs"}}, "set: row cannot be set in a sweep: it is a key of"),
        ({"space": {"select.metod": ["pcs"]}}, "did you mean 'select.method'"),
        ({"space": {"select.layers": ["pool"]}}, "did you mean 'select.layer'"),
        ({"space": {"cluster": [1]}}, r"cluster: there is no such key"),
        ({"space": {"runtime.actors": [1, 2]}}, "changes no result"),
        ({"space": {"seeds": [[0], [1]]}}, "seeds cannot be set in a sweep: seeds says which"),
        ({"space": {"cluster.k": [5, 20_000]}}, r"at cluster.k=20000: cluster.k=20000: .*10000"),
        ({"space": {"cluster.k": [5, 5]}}, "a value twice"),
        ({"space": {"cluster.k": 5}}, r"it is a list of values, for example \[5\]"),
        ({"space": {"cluster.k": {"integer": [5, 9]}}}, "a range, of which search=grid has no"),
        ({"space": {"cluster.k": {"integr": [5, 9]}}}, "did you mean 'integer'"),
        ({"space": {"cluster.k": {"integer": [9, 5]}}}, "LOW < HIGH"),
        ({"space": {"cluster.k": {"integer": [5.5, 9]}}}, "whole numbers"),
        ({"space": {"train.lr": {"log_uniform": [0, 1]}}}, "above 0"),
        ({"space": [1, 2]}, "space must be a mapping"),
        ({"sapce": {}}, "unknown key 'sapce'.*'space'"),
        ({"row": None}, "say which row is swept"),
        ({"row": "lcs-kn"}, "there is no such row.*'lcs-km'"),
        ({"space": {"row": ["pcs"]}}, "not in both"),
        ({"search": "grd"}, "search='grd'"),
        ({"trials": 3}, "goes with search=random or bayesian"),
        ({"search": "random"}, "needs trials"),
        ({"search": "random", "trials": 7}, "draws found 6 different points"),
        ({"search": "bayesian", "trials": 7}, "trials=7: the space has 6 different points"),
        (
            {"search": "bayesian", "trials": 7, "space": {"cluster.k": {"integer": [5, 10]}}},
            "the space has 6 different points",
        ),
        ({"stopping": {"asha": {}}}, "stopping.asha.grace is missing"),
        (
            {"search": "bayesian", "trials": 2, "stopping": {"asha": {"grace": 5}}},
            "no objectives to tell",
        ),
        ({"stopping": {"asha": {"grace": 5}}, "batch": 2}, "batch=2 goes with"),
        ({"search": "bayesian", "trials": 2, "batch": 2}, "batch=2 goes with"),
        ({"set": {"cluster.k": 5}}, "set: cluster.k is in space"),
        ({"set": {"train.lrr": 5}}, "set: train.lrr: .*'train.lr'"),
        ({"set": {"rows": ["full"]}}, "row and baselines say which"),
        ({"set": {"train.lr": -1}}, "train.lr=-1"),
        ({"preset": "digts"}, "^unknown preset 'digts'.*'digits'"),
        ({"seeds": [0, 0]}, "seeds has duplicates"),
    ],
)
def test_a_mistake_names_the_key_and_what_is_right(read: Any, changes: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(**changes)


def test_mistakes_of_the_command_line(read: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--set: cluster\.k is in space"):
        read("cluster.k=3")
    for text, said in (("a: [", "not valid YAML"), ("3", "must be a mapping")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UserError, match=said):
            read_sweep(tmp_path / "bad.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read_sweep(tmp_path / "missing.yaml")


def test_a_preset_file_may_lie_beside_the_sweep_file(read: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train: {lr: 0.07}")
    space = read(preset="mine.yaml")
    assert space.base.train.lr == 0.07
    (tmp_path / "mine.yaml").write_text("train: {lr: 0.08}")
    assert space.point(space.points[0].settings).config.train.lr == 0.07, "as it was read"


AXES = st.one_of(
    st.tuples(st.just("choice"), st.lists(st.integers(), min_size=1, max_size=9, unique=True)),
    st.tuples(
        st.sampled_from(["integer", "log_integer"]),
        st.tuples(st.integers(1, 50), st.integers(51, 10_000)),
    ),
    st.tuples(
        st.sampled_from(["uniform", "log_uniform"]),
        st.tuples(st.floats(1e-6, 1.0), st.floats(1.5, 1e6)),
    ),
)


@given(AXES, st.floats(0, 1, exclude_max=True))
def test_what_is_drawn_is_in_the_axis(found: Any, u: float) -> None:
    axis = Axis(kind=found[0], values=tuple(found[1]))
    value = axis.draw(u)
    if axis.kind == "choice":
        assert value in axis.values
    else:
        assert axis.values[0] <= value <= axis.values[1]
        assert isinstance(value, int) == axis.kind.endswith("integer")


def test_a_range_reaches_both_ends() -> None:
    axis = Axis(kind="integer", values=(5, 7))
    assert [axis.draw(u) for u in (0.0, 0.34, 0.999)] == [5, 6, 7]
    axis = Axis(kind="log_uniform", values=(0.01, 1.0))
    assert [axis.draw(u) for u in (0.0, 0.5)] == [0.01, 0.1]


def test_the_file_can_be_written_again(read: Any, tmp_path: Path) -> None:
    space = read(space={"cluster.k": [5], **RATIO}, search="random", trials=3)
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(space.sweep.written, sort_keys=False))
    again = read_sweep(tmp_path / "again.yaml")
    assert points(again.sweep) == points(space.sweep)
