"""What a report averages over repetitions, and what it keeps apart."""

from dataclasses import replace

from pqd.report.cases import cases, distinct
from pqd.report.load import load
from pqd.report.swept import variants
from pqd.report.view import view
from report_runs import result, write, write_sweep


def test_swept_keys_make_cases_and_unpruned_orders_join_every_sparsity(tmp_path):
    write_sweep(tmp_path, order=("pqd", "q"), seed=(0, 1), sparsity=(0.8, 0.9), alpha=(0.5, 0.9))
    runs, repeats = distinct(load([tmp_path]).runs)
    assert repeats == 6  # q knows neither sparsity nor alpha: 8 runs are 2
    found = cases(runs)
    assert [case.label for case in found] == [
        f"resnet20 · digits · distill.alpha={alpha} · sparsity {sparsity} %"
        for alpha in (0.5, 0.9)
        for sparsity in (80, 90)
    ]
    assert [case.orders() for case in found] == [["pqd", "q"]] * 4
    assert [[run.seed for run in case.of("q")] for case in found] == [[0, 1]] * 4


def test_swept_keys_stand_in_the_order_of_the_settings(tmp_path):
    swept = ["baseline.lr", "distill.lr", "distill.alpha", "prune.lr", "prune.ramp", "quantize.lr"]
    for number in (1, 2):
        run = result("pqd")
        for stage, name in (key.split(".") for key in swept):
            run.config[stage][name] = number / 10
        run.name = f"run_{number}"
        write(tmp_path, run)
    found = [list(variant) for _, variant in variants(load([tmp_path]).runs)]
    assert found == [swept] * 2  # in every process: a set's order changes


def test_keys_that_follow_the_seed_or_name_a_place_make_no_cases(tmp_path):
    for seed in range(3):
        data = result("pqd", seed=seed)
        data.config["distill"]["teacher"] = f"teachers/{seed}.safetensors"
        data.config["dataset"]["root"] = f"data{seed % 2}"
        write(tmp_path, data)
    (case,) = cases(load([tmp_path]).runs)
    assert case.variant == {}
    assert len(case.of("pqd")) == 3


def test_different_training_of_different_seeds_is_not_averaged(tmp_path):
    for seed in range(4):
        data = result("pqd", seed=seed)
        data.config["prune"]["epochs"] = 4 if seed < 2 else 8
        write(tmp_path, data)
    found = cases(load([tmp_path]).runs)
    assert [case.variant for case in found] == [
        {"prune.epochs": "4"},
        {"prune.epochs": "8"},
    ]


def test_of_repeats_the_newest_counts(tmp_path):
    write(tmp_path / "old", result("pqd", accuracy=90.0))
    new = result("pqd", accuracy=91.0)
    new.provenance.started = "2027-01-01T00:00:00+00:00"
    write(tmp_path / "new", new)
    assert [run.accuracy for run in view(load([tmp_path])).runs] == [91.0]
    assert view(load([tmp_path])).repeats == 1


def labels(folder):
    """The accuracies of each case of pqd, by label."""
    runs, _ = distinct(load([folder]).runs)
    return {case.label: [run.accuracy for run in case.of("pqd")] for case in cases(runs)}


def changed(folder, accuracy, seed=0, **settings):
    """Writes a run of pqd with other settings, by dotted key."""
    data = result("pqd", seed=seed, accuracy=accuracy)
    for key, value in settings.items():
        group, _, name = key.partition("__")
        data.config[group][name] = value
    name = "_".join(map(str, settings.values()))
    return write(folder, replace(data, name=f"{data.name}_{name}_{accuracy}"))


def test_two_settings_of_two_seeds_are_not_averaged(tmp_path):
    changed(tmp_path, 88.0, seed=0, prune__epochs=4)
    changed(tmp_path, 80.0, seed=1, prune__epochs=20)
    assert sorted(labels(tmp_path).values()) == [[80.0], [88.0]]


def test_no_budget_is_a_case_beside_budgets(tmp_path):
    for seed in range(2):
        changed(tmp_path, 88.0, seed, quantize__size_kib=None)
        changed(tmp_path, 80.0, seed, quantize__size_kib=30)
        changed(tmp_path, 70.0, seed, quantize__size_kib=20)
    case = "resnet20 · digits"
    assert labels(tmp_path) == {
        f"{case} · quantize.size_kib=None · sparsity 80 %": [88.0, 88.0],
        f"{case} · sparsity 80 % · size in KiB 20": [70.0, 70.0],
        f"{case} · sparsity 80 % · size in KiB 30": [80.0, 80.0],
    }


def test_a_setting_that_older_results_lack_has_its_default_there(tmp_path):
    changed(tmp_path, 88.0)  # says nothing of round_to
    changed(tmp_path, 80.0, prune__round_to=4)
    changed(tmp_path, 87.0, seed=1, prune__round_to=8)  # the default
    case = "resnet20 · digits · prune.round_to={} · sparsity 80 %"
    assert labels(tmp_path) == {case.format(4): [80.0], case.format(8): [88.0, 87.0]}


def test_other_images_of_the_same_settings_are_no_repeats(tmp_path):
    for root, digest, accuracy in (("birds", "b" * 16, 60.0), ("flowers", "f" * 16, 88.0)):
        for seed in range(2):
            data = result("pqd", seed=seed, dataset="digits", accuracy=accuracy)
            data.config["dataset"]["root"] = root
            data.final.dataset = digest
            write(tmp_path / root, data)
    assert labels(tmp_path) == {
        "resnet20 · digits · dataset.root=birds · sparsity 80 %": [60.0, 60.0],
        "resnet20 · digits · dataset.root=flowers · sparsity 80 %": [88.0, 88.0],
    }


def test_a_root_whose_images_have_changed_is_named_by_them(tmp_path):
    for digest, accuracy in (("b" * 16, 60.0), ("f" * 16, 88.0)):
        data = result("pqd", accuracy=accuracy)
        data.final.dataset = digest
        write(tmp_path / digest, data)
    assert [case.split(" · ")[2] for case in labels(tmp_path)] == [
        f"dataset.root={'b' * 16}",
        f"dataset.root={'f' * 16}",
    ]


def test_shapes_found_in_two_runtimes_are_no_repeats(tmp_path):
    for runtime, accuracy in (("onnxruntime", 88.0), ("openvino", 80.0)):
        data = result("pqd", accuracy=accuracy)
        data.config["prune"]["speedup"] = 2.0
        measured = {"runtime": runtime, "threads": 1, "batch_size": 1}
        data.stages[1].shape = {"measured": measured}
        write(tmp_path / runtime, data)
    assert labels(tmp_path) == {
        f"resnet20 · digits · prune.measured_in={runtime}, 1, 1 · sparsity 80 % · speed-up 2": [a]
        for runtime, a in (("onnxruntime", 88.0), ("openvino", 80.0))
    }
