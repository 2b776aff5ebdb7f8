"""Which jobs a configuration asks for, and which settings change which digests."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssat_ray.config import RESERVED_RECIPES
from ssat_ray.errors import UserError
from ssat_ray.loading import load_config
from ssat_ray.pipeline import _up_to
from ssat_ray.plan import STAGES, Plan, build_plan
from ssat_ray.preflight import preflight
from ssat_ray.stages.train import BEST

SELECTING = ("random", "pcs", "lcs-km", "lcs-gmm", "easy")
ROWS = "rows=[none, random, pcs, lcs-km, lcs-gmm, easy, full]"


def _plan(*overrides: str) -> Plan:
    return build_plan(load_config("digits", [ROWS, *overrides]))


def _digests(plan: Plan) -> dict:
    return {key: job.digest for key, job in plan.jobs.items()} | {"report": plan.report.digest}


def _changed(*overrides: str) -> set:
    before, after = _digests(_plan()), _digests(_plan(*overrides))
    assert set(before) == set(after)
    return {key for key in before if before[key] != after[key]}


def _stage(key: object) -> str:
    return "report" if key == "report" else key[2].partition(":")[0]


def test_runtime_settings_change_no_digest() -> None:
    assert _changed("runtime.store=/x", "runtime.train_workers=[1, 2]", "runtime.actors=3") == set()


def test_select_ratio_changes_select_and_what_follows_of_selecting_rows() -> None:
    changed = _changed("select.ratio=0.1")
    keys = set(_plan().jobs) | {"report"}
    expected = {
        key
        for key in keys
        if key == "report"
        or (key[0] in SELECTING and _stage(key) in {"select", "train", "evaluate"})
    }
    assert changed == expected


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("evaluate.pgd_steps=3", {"evaluate", "report"}),
        ("train.lr=0.2", {"train", "evaluate", "report"}),
        ("objective.beta=1", {"train", "evaluate", "report"}),
        ("objective.pool_weight=2.5", {"train", "evaluate", "report"}),
        ("cluster.k=12", {"cluster", "score", "select", "train", "evaluate", "report"}),
        (
            "generate.num_images=99",
            {"pool", "cluster", "score", "select", "train", "evaluate", "report"},
        ),
        (
            "intermediate.lr=0.2",
            {"intermediate", "cluster", "score", "select", "train", "evaluate", "report"},
        ),
        (
            "data.split_seed=1",
            {"pool", *STAGES} - {"generate", "synth", "checkpoint", "ddpm", "finetune", "quality"},
        ),
    ],
)
def test_a_setting_changes_the_stages_downstream_only(override: str, stages: set) -> None:
    assert {_stage(key) for key in _changed(override)} == stages


def test_a_mixture_setting_leaves_the_k_means_rows_alone() -> None:
    rows = {key[0] for key in _changed("cluster.covariance=full") if key != "report"}
    assert rows == {"lcs-gmm"}
    rows = {key[0] for key in _changed("cluster.restarts=2") if key != "report"}
    assert rows == {"lcs-km", "easy"}


def test_autoattack_seeds_only_add_jobs() -> None:
    before, after = _plan("seeds=[0, 1]"), _plan("seeds=[0, 1]", "evaluate.autoattack_seeds=[1]")
    added = set(after.jobs) - set(before.jobs)
    assert added == {(row, 1, "evaluate:autoattack") for row in ("none", "full", *SELECTING)}
    assert all(after.jobs[key].digest == job.digest for key, job in before.jobs.items())


def test_attacks_are_chosen_and_each_has_its_own_settings() -> None:
    attacks = {stage for _, _, stage in _plan("evaluate.attacks=[pgd, clean]").jobs}
    assert {a for a in attacks if a.startswith("evaluate:")} == {"evaluate:clean", "evaluate:pgd"}
    changed = _changed("evaluate.pgd_restarts=5") - {"report"}
    assert {stage for _, _, stage in changed} == {"evaluate:pgd"}
    changed = _changed("evaluate.apgd_steps=50") - {"report"}
    assert {stage for _, _, stage in changed} == {"evaluate:apgd-ce"}
    changed = _changed("evaluate.batch_size=50") - {"report"}
    assert {stage for _, _, stage in changed} == {
        f"evaluate:{a}" for a in ("clean", "pgd", "apgd-ce")
    }


def test_seeds_share_only_the_labelled_set() -> None:
    jobs = _plan("seeds=[0, 1]").jobs
    by_seed = [{job.digest for (_, s, _), job in jobs.items() if s == seed} for seed in (0, 1)]
    assert by_seed[0] & by_seed[1] == {jobs["full", 0, "labelled"].digest}
    assert len(by_seed[0]) == len(by_seed[1])


def test_rows_share_the_pool_and_need_only_their_stages() -> None:
    jobs = _plan().jobs
    pools = {job.digest for (_, _, stage), job in jobs.items() if stage == "pool"}
    assert len(pools) == 1
    stages = {row: {s for r, _, s in jobs if r == row} for row in ("none", "full", "random", "pcs")}
    attacks = {"evaluate:clean", "evaluate:pgd", "evaluate:apgd-ce"}
    assert stages["none"] == {"labelled", "train"} | attacks
    assert stages["full"] == stages["none"] | {"pretrain", "pool"}
    assert stages["random"] == stages["full"] | {"select"}
    assert stages["pcs"] == stages["random"] | {"intermediate", "score"}
    assert {s for r, _, s in jobs if r == "lcs-gmm"} == stages["pcs"] | {"cluster"}


def test_easy_and_lcs_km_share_one_score_table() -> None:
    jobs = _plan("rows=[easy, lcs-km, lcs-gmm, gmm-ll]").jobs
    assert jobs["easy", 0, "score"] == jobs["lcs-km", 0, "score"]
    assert jobs["lcs-gmm", 0, "score"] == jobs["gmm-ll", 0, "score"]
    assert jobs["easy", 0, "select"].digest != jobs["lcs-km", 0, "select"].digest
    assert jobs["easy", 0, "score"].digest != jobs["lcs-gmm", 0, "score"].digest


def test_full_trains_on_the_pool_and_the_others_on_their_selection() -> None:
    jobs = _plan().jobs
    assert jobs["full", 0, "train"].inputs["unlabelled"] == jobs["full", 0, "pool"]
    for row in SELECTING:
        assert jobs[row, 0, "train"].inputs["unlabelled"] == jobs[row, 0, "select"]


GUIDED_ROWS = "rows=[random, lcs-km, pcg, lcg-km, lcg-gmm]"


def test_a_guided_row_makes_its_images_and_needs_no_pool() -> None:
    jobs = _plan(GUIDED_ROWS).jobs
    own = {s for r, _, s in jobs if r == "lcg-km" and not s.startswith("evaluate")}
    made = {"base", "score", "cluster", "finetune", "guided", "quality"}
    assert own == {"labelled", "pretrain", "intermediate", "train"} | made
    assert {s for r, _, s in jobs if r == "pcg"} == {s for r, _, s in jobs if r == "lcg-km"} - {
        "cluster"
    }
    row = {s: jobs["lcg-km", 0, s] for s in own}
    assert row["train"].inputs["unlabelled"] == row["base"]
    assert row["train"].inputs["unlabelled.1"] == row["guided"]
    sizes = [row[name].config["generate"]["num_images"] for name in ("base", "guided")]
    assert sizes == [1200, 800] and row["guided"].params["first_id"] == 1200  # of 2,000 selected
    assert row["guided"].inputs["ddpm"] == row["finetune"]
    assert row["finetune"].inputs["ddpm"] == row["base"].inputs["ddpm"] == row["pretrain"]
    assert row["cluster"].inputs["pool"] == row["score"].inputs["pool"] == row["base"]
    assert jobs["pcg", 0, "base"] == jobs["lcg-gmm", 0, "base"] == row["base"]
    assert "clusters" not in jobs["pcg", 0, "finetune"].inputs
    assert jobs["lcg-gmm", 0, "cluster"].params["method"] == "gmm"
    assert jobs["random", 0, "pool"].digest not in {j.digest for j in row["train"].closure()}


def test_pcg_may_have_a_lambda_of_its_own() -> None:
    """Which enters no other row, and is the same as that lambda for all."""

    def weights(*settings: str) -> dict[str, tuple[float, str]]:
        jobs = _plan(GUIDED_ROWS, "finetune.weight=0.2", *settings).jobs
        found = {row: jobs[row, 0, "finetune"] for row in ("pcg", "lcg-km", "lcg-gmm")}
        return {row: (j.config["finetune"]["weight"], j.digest) for row, j in found.items()}

    usual, own = weights("finetune.pcg_weight=null"), weights("finetune.pcg_weight=0.7")
    assert {row: weight for row, (weight, _) in usual.items()} == dict.fromkeys(usual, 0.2)
    assert own["pcg"] == weights("finetune.weight=0.7", "finetune.pcg_weight=null")["pcg"]
    assert own["pcg"] != usual["pcg"] and own["pcg"][0] == 0.7
    assert all(own[row] == usual[row] for row in ("lcg-km", "lcg-gmm"))
    assert weights("finetune.pcg_weight=0")["pcg"][0] == 0, "0 is a lambda, not its absence"


@pytest.mark.parametrize("guidance", [0, 2])
def test_centroids_by_class_are_of_the_base_images_of_the_k_means_row(guidance: int) -> None:
    common = (GUIDED_ROWS, f"generate.guidance={guidance}")
    usual, jobs = (_plan(*common, *more).jobs for more in ((), ("finetune.centroids=per-class",)))
    stage = "guided" if guidance else "finetune"
    row = {s: job for (r, _, s), job in jobs.items() if r == "lcg-km"}
    assert row[stage].inputs["base"] == row["base"]
    assert row[stage].config["finetune"]["k_per_class"] == 5
    assert "base" not in usual["lcg-km", 0, stage].inputs
    assert "base" not in jobs["lcg-gmm", 0, stage].inputs
    assert row["quality"].inputs["guide_clusters"] == usual["lcg-km", 0, "cluster"]


def test_labels_by_the_intermediate_model_make_it_part_of_every_generated_row() -> None:
    rows = "rows=[random, full, lcg-km]"
    usual, jobs = (_plan(rows, *more).jobs for more in ((), ("generate.labels=intermediate",)))
    for row in ("random", "full"):
        assert jobs[row, 0, "pool"].inputs["intermediate"] == jobs[row, 0, "intermediate"]
        assert (row, 0, "intermediate") not in usual
    for stage in ("base", "guided"):
        assert jobs["lcg-km", 0, stage].inputs["intermediate"].params == {"seed": 0}
        assert "intermediate" not in usual["lcg-km", 0, stage].inputs
    synth = _plan("rows=[full]", "pool.source=synth", "generate.labels=intermediate").jobs
    assert ("full", 0, "intermediate") not in synth


def test_the_judge_is_another_model_with_its_own_clusters_that_guidance_never_saw() -> None:
    row = {s: job for (r, _, s), job in _plan(GUIDED_ROWS).jobs.items() if r == "lcg-km"}
    inputs = row["quality"].inputs
    assert inputs["guide"] == row["intermediate"] and inputs["guide_clusters"] == row["cluster"]
    judge = inputs["judge"]
    assert judge.config == row["intermediate"].config and judge.params != row["intermediate"].params
    assert inputs["judge_clusters"].inputs["intermediate"] == judge
    assert inputs["judge_clusters"].inputs["pool"] == row["base"]
    assert judge.digest not in {job.digest for job in row["train"].closure()}


def test_guidance_at_sampling_takes_the_place_of_fine_tuning() -> None:
    jobs = _plan(GUIDED_ROWS, "generate.guidance=2").jobs
    guided = jobs["lcg-km", 0, "guided"]
    assert ("lcg-km", 0, "finetune") not in jobs and guided.inputs["ddpm"].stage == "pretrain"
    assert guided.config["generate"]["guidance"] == 2
    assert guided.inputs["clusters"] == jobs["lcg-km", 0, "cluster"]
    before = _plan(GUIDED_ROWS).jobs
    for key in (("lcs-km", 0, "pool"), ("lcg-km", 0, "base")):
        assert jobs[key].digest == before[key].digest


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pool.source=synth"], "lcg-km fine-tunes the DDPM"),
        (["select.boundary_fraction=0"], "leaves 0 guided images"),
        (["select.boundary_fraction=1"], "leaves 0 images of the base model"),
        (["cluster.k=1300"], r"leaves 1200 .* fewer than cluster\.k=1300"),
    ],
)
def test_guided_rows_that_cannot_be_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config("digits", ["rows=[none, lcg-km]", *overrides])
    load_config("digits", ["rows=[none, lcg-km]"])


def _until(stage: str, *overrides: str) -> set[str]:
    """Labels of the jobs that a verb does."""
    order = list(STAGES)
    jobs = _up_to(_plan(*overrides), order[: order.index(stage) + 1])
    return {job.label for job in jobs}


def test_a_verb_does_its_stage_and_what_that_needs() -> None:
    rows = "rows=[random, lcg-km]"
    assert _until("generate", rows) == {
        "labelled",
        "pretrain seed 0",
        "generate seed 0",
        "generate base images seed 0",
    }
    finetune = _until("finetune", rows)
    assert "finetune lcg-km seed 0" in finetune and "generate seed 0" not in finetune
    assert not any("judge" in label for label in finetune)
    assert {"generate lcg-km seed 0", "intermediate judge seed 0"} <= _until("quality", rows)
    steered = _until("score", rows, "generate.guidance=1")
    assert "score kmeans seed 0" in steered and "generate lcg-km seed 0" not in steered
    with pytest.raises(UserError, match="random, full have no stage finetune"):
        _until("finetune", "rows=[random, full]")


def test_the_judge_does_not_come_from_the_guides_file(tmp_path: Path) -> None:
    digests = set()
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(b"weights")
        jobs = _plan(GUIDED_ROWS, f"intermediate.checkpoint={tmp_path / name}").jobs
        assert jobs["lcg-km", 0, "quality"].inputs["guide"].stage == "checkpoint"
        digests.add(jobs["lcg-km", 0, "quality"].inputs["judge"].digest)
    digests.add(_plan(GUIDED_ROWS).jobs["lcg-km", 0, "quality"].inputs["judge"].digest)
    assert len(digests) == 1


def test_none_is_the_best_of_its_recipes() -> None:
    plan = _plan("train.none_recipes={slow: {lr: 0.01}, long: {patience: 9}}")
    best = plan.jobs["none", 0, "train"]
    assert best.params["recipe"] == BEST
    assert set(best.inputs) == {"default", "slow", "long"}
    assert {j.params["recipe"] for j in best.inputs.values()} == {"default", "slow", "long"}
    assert best.inputs["slow"].config["train"]["lr"] == 0.01
    assert best.inputs["long"].config["train"]["patience"] == 9
    trained = [job for job in plan.unique if job.stage == "train"]
    assert len(trained) == len({"none", "full", *SELECTING}) + 3
    plain = _plan("train.none_recipes={}").jobs["none", 0, "train"]
    assert plain.params["recipe"] == "default" and set(plain.inputs) == {"labelled"}
    assert (
        all(job.params["search"] for job in best.inputs.values()) and "search" not in plain.params
    )


def test_no_recipe_can_take_a_name_that_the_plan_uses() -> None:
    assert set(RESERVED_RECIPES) == {"default", BEST}


def _preflight(*overrides: str) -> None:
    """Of ten classes of 8 x 8 images."""
    config = load_config("digits", [ROWS, *overrides])
    rows = {"labelled": 300, "validation": 700}
    record = {"image_shape": (1, 8, 8), "num_classes": 10, "rows": rows}
    preflight(config, build_plan(config), SimpleNamespace(record=lambda job: record))


def test_one_cluster_a_class_needs_a_pool_as_large() -> None:
    with pytest.raises(UserError, match=r"cluster\.k=null.* 10 .*generate\.num_images=9"):
        _preflight("generate.num_images=9")
    _preflight("generate.num_images=10")
    _preflight("generate.num_images=9", "cluster.k=9")
    _preflight("generate.num_images=9", "rows=[random, full]")


def test_one_cluster_a_class_needs_as_many_images_of_the_base_model() -> None:
    few = ("generate.num_images=100", "select.ratio=0.1")  # 6 base images
    with pytest.raises(UserError, match=r"10 here; lcg-km clusters the 6 images of the base model"):
        _preflight(*few, "rows=[none, lcg-km]")
    _preflight(*few, "rows=[none, pcg]")
    _preflight(*few, "rows=[none, lcg-km]", "cluster.k=6")
    _preflight("rows=[none, lcg-km]")


def test_centroids_by_class_need_images_of_each_class() -> None:
    rows = ("rows=[none, lcg-km]", "finetune.centroids=per-class", "cluster.k=4")
    few = ("generate.num_images=400", "select.boundary_fraction=0.5")  # 40 base images
    with pytest.raises(UserError, match=r"k_per_class=5: 40 base images .* 10 classes"):
        _preflight(*rows, *few)
    _preflight(*rows, *few, "finetune.k_per_class=4")
    many = ("generate.num_images=200000", "finetune.k_per_class=1001")  # 20,000 base images
    with pytest.raises(UserError, match=r"k_per_class=1001: 10000 base images \(at most 10000"):
        _preflight(*rows, *many, "select.boundary_fraction=0.5")
    _preflight(*rows[::2], *few)


def test_unique_holds_each_artefact_once_in_an_order_that_can_run() -> None:
    plan = _plan("seeds=[0, 1]")
    seen: set[str] = set()
    for job in plan.unique:
        assert all(i.digest in seen for i in job.inputs.values())
        assert job.digest not in seen
        seen.add(job.digest)
    assert plan.unique[-1] == plan.report
    assert {job.digest for job in plan.jobs.values()} < seen
    order = list(STAGES)
    for job in plan.unique:  # what pipeline.execute relies on: no stage needs a later one
        assert all(order.index(i.stage) <= order.index(job.stage) for i in job.inputs.values())
    guided = _plan(GUIDED_ROWS)
    for job in guided.unique:  # but guided images, for which `generate` comes once more
        later = [
            i.stage for i in job.inputs.values() if order.index(i.stage) > order.index(job.stage)
        ]
        assert later in ([], ["finetune"]) and (not later or job.stage == "generate")
    counts = Counter(job.stage for job in plan.unique)
    assert counts["labelled"] == 1 and counts["generate"] == 2 and counts["score"] == 6


def test_jobs_are_the_same_on_every_call() -> None:
    assert _digests(_plan()) == _digests(_plan())


def test_the_files_content_decides(tmp_path) -> None:
    path = tmp_path / "set.npz"
    digests = []
    for content in (b"a", b"b", b"a"):
        path.write_bytes(content)
        plan = _plan("data.name=npz", f"data.path={path}")
        digests.append(plan.jobs["full", 0, "labelled"].digest)
    assert digests[0] == digests[2] != digests[1]


def test_a_missing_data_file_is_a_user_error(tmp_path) -> None:
    with pytest.raises(UserError, match=r"gone\.npz"):
        _plan("data.name=npz", f"data.path={tmp_path / 'gone.npz'}")


def test_a_checkpoint_takes_the_place_of_the_intermediate_model(tmp_path: Path) -> None:
    path = tmp_path / "published.pt"
    digests = []
    for content in (b"one", b"two"):
        path.write_bytes(content)
        plan = _plan(f"intermediate.checkpoint={path}", "seeds=[0,1]")
        job = plan.jobs["lcs-km", 0, "intermediate"]
        assert job.stage == "checkpoint" and job.location == str(path)
        assert plan.jobs["lcs-km", 1, "intermediate"].digest == job.digest
        assert not any(job.stage == "intermediate" for job in plan.unique)
        assert plan.jobs["lcs-km", 0, "cluster"].inputs["intermediate"].digest == job.digest
        digests.append(job.digest)
    assert digests[0] != digests[1]
    moved = tmp_path / "elsewhere.pt"
    path.rename(moved)
    same = _plan(f"intermediate.checkpoint={moved}").jobs["lcs-km", 0, "intermediate"]
    assert same.digest == digests[1]
    with pytest.raises(
        UserError, match=r"intermediate\.checkpoint: .*published\.pt does not exist"
    ):
        _plan(f"intermediate.checkpoint={path}")
