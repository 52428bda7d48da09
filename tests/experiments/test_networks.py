"""Networks of experiments and their names."""

from experiments.harness import networks


def test_checkpoints_of_one_folder_name_keep_apart():
    names = ["fashion_unet", "runs/a/checkpoint", "runs/b/checkpoint", "c/dit"]
    found = networks.titles(names)
    assert list(found.values()) == names
    assert list(found) == ["fashion_unet", "runs/a/checkpoint", "runs/b/checkpoint", "dit"]
