"""The generator of features: what it draws, what it refuses, and what a saved one says of itself."""

import json
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_reprot.experimental.latent import LatentTransport, nearest_distances
from hf_reprot.experimental.latent.points import mix
from tests.hub_server.card import front_matter
from tests.hub_server.fixtures import hub, run_with_hub  # noqa: F401

SIGMA = 0.1
MODES = 2 * torch.stack([torch.cos(torch.arange(8) * math.pi / 4), torch.sin(torch.arange(8) * math.pi / 4)], 1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def eight_gaussians(n, seed=0):
    generator = seeded(seed)
    mode = torch.randint(0, 8, (n,), generator=generator)
    return MODES[mode] + SIGMA * torch.randn(n, 2, generator=generator), mode


def two_classes(n=60, d=10):
    labels = torch.arange(n) % 3 // 2 * 4 + 3  # 3, 3, 7
    return torch.randn(n, d, generator=seeded(1)) + 20.0 * (labels[:, None] == 7), labels


@pytest.fixture(scope="module")
def ring():
    features, _ = eight_gaussians(400)
    return features, LatentTransport(steps=120, mixing=0.0).fit(features, held_out=eight_gaussians(400, 1)[0])


@pytest.fixture(scope="module")
def classes():
    features, labels = two_classes()
    return (
        features,
        labels,
        LatentTransport(dimension=4, steps=40, mixing=0.0).fit(features, labels, teacher="a/b", dataset="c"),
    )


@pytest.mark.parametrize("mixing", [0.0, 1.0])
def test_every_mode_is_drawn_and_nothing_between_them(ring, mixing):
    features, latent = ring
    latent.mixing = mixing
    drawn = latent.sample(20_000, generator=seeded(2))
    latent.mixing = 0.0
    distance, mode = torch.cdist(drawn, MODES).min(1)
    share = torch.bincount(mode, minlength=8) / len(drawn)
    own = torch.bincount(torch.cdist(features, MODES).argmin(1), minlength=8) / len(features)
    assert (share >= 0.02).all()
    assert (share * (share / own).log()).sum() < 0.005
    assert (distance <= 3 * SIGMA).float().mean() >= 0.95
    copies = (nearest_distances(drawn, features) == 0).float().mean()
    assert copies == 1 if mixing == 0 else copies < 0.5


def test_without_a_reach_mixing_builds_bridges(ring):
    features, latent = ring
    noise = torch.randn(5000, 2, generator=seeded(3))
    scores = noise @ latent._tensors["points"].T + latent._tensors["offsets"]
    far = {}
    for reach in (latent._tensors["reach"].item(), math.inf):
        blur = torch.full((5000,), 20 * latent._tensors["gap"].item())
        points = mix(scores, features, blur, torch.full((5000,), reach), 1.0)
        far[reach] = (torch.cdist(points, MODES).amin(1) > 5 * SIGMA).float().mean()
    assert far.pop(math.inf) > 0.01
    assert far.popitem()[1] == 0


def test_mixing_by_hand():
    targets = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 9.0]])
    scores = torch.tensor([[2.0, 1.0, 1.9], [-torch.inf, 0.0, -torch.inf]])
    found = mix(scores, targets, torch.tensor([0.5, 0.5]), torch.tensor([2.0, 2.0]), mixing=2.0)
    share = math.exp(-1) / (1 + math.exp(-1))  # the third point scores more than the second, and is out of reach
    torch.testing.assert_close(found, torch.tensor([[share, 0.0], [1.0, 0.0]]))
    assert torch.equal(mix(scores, targets, torch.ones(2), torch.ones(2), 0.0), targets[[0, 1]])


def test_classes_come_as_often_as_they_did_and_are_their_own(classes):
    features, labels, latent = classes
    drawn, drawn_labels = latent.sample(6000, generator=seeded())
    assert abs((drawn_labels == 7).float().mean() - 1 / 3) < 0.03
    found = (drawn[:, None] == features).all(2)
    assert found.any(1).all()
    assert (labels[found.long().argmax(1)] == drawn_labels).all()
    counts = found.sum(0).float()
    assert counts.min() > 0.5 * counts.mean()
    for asked in (7, torch.tensor([3, 7, 7])):
        drawn = latent.sample(3, asked, generator=seeded())
        assert ((drawn.mean(1) > 10) == (torch.as_tensor(asked).expand(3) == 7)).all()


def test_the_same_noise_gives_the_same_features(classes, ring):
    _, _, latent = classes
    noise = torch.randn(9, 4, generator=seeded())
    assert torch.equal(latent.transport(noise, 3), latent.transport(noise, 3))
    torch.testing.assert_close(latent.transport(noise, 3)[:2], latent.transport(noise[:2], 3))
    assert ring[1].transport(torch.randn(9, 2)).shape == (9, 2)
    one, other = (latent.sample(50, generator=seeded(s))[0] for s in (0, 1))
    assert torch.equal(one, latent.sample(50, generator=seeded(0))[0])
    assert not torch.equal(one, other)


def test_repeated_features_come_more_often_and_points_can_be_limited():
    features = torch.eye(4).repeat_interleave(torch.tensor([1, 1, 1, 5]), 0)
    latent = LatentTransport(dimension=None, steps=200, mixing=0.0).fit(features)
    assert latent._tensors["features"].shape == (4, 4)
    drawn = latent.sample(4000, generator=seeded())
    assert abs(drawn[:, 3].mean() - 5 / 8) < 0.05
    few = LatentTransport(steps=5, max_points=6).fit(*two_classes())
    assert torch.bincount(few._tensors["class_index"]).tolist() == [6, 6]


def test_jitter_has_the_length_that_it_says(classes):
    features, labels, latent = classes
    latent.jitter = 0.5
    drawn = latent.sample(500, 3, generator=seeded())
    latent.jitter = 0.0
    own = features[labels == 3]
    ranked = torch.cdist(own, own).sort(1).values[:, 8].median()
    moved = nearest_distances(drawn, features).square().mean().sqrt()
    assert abs(moved / (0.5 * ranked) - 1) < 0.1


def test_the_report_is_what_was_measured(ring):
    features, latent = ring
    held_out = eight_gaussians(400, 1)[0]
    report = latent.report
    assert (report["copies"], report["sample_to_training"], report["ratio"]) == (1.0, 0.0, 0.0)
    fresh = torch.cdist(held_out, features).amin(1).median()
    assert report["held_out_to_training"] == pytest.approx(fresh.item(), rel=1e-3)
    assert report["sample_to_held_out"] == pytest.approx(fresh.item(), rel=0.3)
    assert report["mass_noise"] < report["mass_error"] < 3 * report["mass_noise"]
    blended = LatentTransport(steps=60, mixing=1.0).fit(features, held_out=held_out).report
    assert blended["copies"] < 0.5
    assert 0 < blended["ratio"] < 1


def test_ranked_distances():
    points = torch.tensor([[0.0], [1.0], [3.0]]) + 1e4
    assert nearest_distances(points, points).tolist() == [0, 0, 0]
    assert nearest_distances(points, points, 2).tolist() == [1, 1, 2]
    with pytest.raises(ValueError, match="rank must be from 1 to the number of references, 3, got 4"):
        nearest_distances(points, points, 4)


def test_a_saved_generator_draws_the_same(classes, tmp_path):
    _, _, latent = classes
    latent.save_pretrained(tmp_path / "latent")
    assert {p.name for p in (tmp_path / "latent").iterdir()} == {"README.md", "config.json", "latent.safetensors"}
    loaded = LatentTransport.from_pretrained(tmp_path / "latent")
    for ours, theirs in zip(latent.sample(30, generator=seeded()), loaded.sample(30, generator=seeded()), strict=True):
        assert torch.equal(ours, theirs)
    assert (loaded.report, loaded.about, loaded.labels) == (latent.report, latent.about, [3, 7])
    loaded.save_pretrained(tmp_path / "again")
    for name in ("README.md", "config.json", "latent.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "latent" / name).read_bytes()


def _damage(name, change):
    def apply(folder):
        tensors = load_file(folder / "latent.safetensors")
        tensors[name] = change(tensors[name])
        save_file({k: v for k, v in tensors.items() if v is not None}, folder / "latent.safetensors")

    return apply


def _configure(**values):
    def apply(folder):
        config = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(config))

    return apply


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_damage("offsets", lambda t: t[:-1]), "offsets of shape"),
        (_damage("gap", lambda t: t / 0), "gap is not finite"),
        (_damage("points", lambda t: t.double()), "points is torch.float64"),
        (_damage("class_index", lambda t: t + 1), "class_index names other classes"),
        (_damage("classes", lambda t: t.flip(0).contiguous()), "classes are not in order"),
        (_damage("reach", lambda t: None), "holds"),
        (_configure(format=99), "newer version"),
        (_configure(model_type="bert"), "no saved LatentTransport"),
        (_configure(settings={"dimension": 0}), "dimension must be a whole number of at least 1, got 0"),
        (_configure(settings={"code": "x"}), "no valid settings"),
        (lambda folder: (folder / "latent.safetensors").write_bytes(b"no"), "is damaged"),
        (lambda folder: (folder / "latent.safetensors").unlink(), "holds no latent.safetensors"),
    ],
)
def test_damaged_files_are_refused(classes, tmp_path, damage, words):
    classes[2].save_pretrained(tmp_path / "latent")
    damage(tmp_path / "latent")
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        LatentTransport.from_pretrained(tmp_path / "latent")


def test_a_push_is_one_commit_that_says_what_it_holds(hub, run_with_hub, tmp_path):  # noqa: F811
    run_with_hub(
        """
import torch
from hf_reprot.experimental.latent import LatentTransport
features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
latent = LatentTransport(dimension=3, steps=5, mixing=0.5)
latent.fit(features, torch.arange(40) % 2, held_out=features + 1, teacher="timm/resnet50", dataset="beans")
latent.push_to_hub("ada/latent", private=True)
loaded = LatentTransport.from_pretrained("ada/latent")
drawn = [l.sample(9, generator=torch.Generator().manual_seed(1))[0] for l in (latent, loaded)]
assert torch.equal(*drawn)
""",
        cwd=tmp_path,
    )
    commits = hub.commits("ada/latent")
    assert len(commits) == 2  # one made the repository
    files = hub.files("ada/latent")
    assert set(files) == {".gitattributes", "README.md", "config.json", "latent.safetensors"}
    card = files["README.md"].decode()
    data = front_matter(card)
    assert (data["base_model"], data["datasets"], data["library_name"]) == ("timm/resnet50", ["beans"], "hf_reprot")
    report = json.loads(files["config.json"])["report"]
    assert "holds features of the training data as they are" in card
    assert f"{report['ratio']:.2f} times as far" in card
    assert 'LatentTransport.from_pretrained("ada/latent")' in card


def test_a_card_tells_when_its_figures_are_of_other_settings(tmp_path):
    latent = LatentTransport(dimension=2, steps=2, mixing=0.0).fit(torch.randn(9, 3))
    assert "Measured with" not in str(latent.generate_model_card())
    assert "Every sample is one of them" in str(latent.generate_model_card())
    latent.mixing = 2.0
    assert "Measured with mixing 0.0 and jitter 0.0" in str(latent.generate_model_card())
    assert "Every sample is one of them" not in str(latent.generate_model_card())


def test_a_card_tells_no_place_on_disk(tmp_path):
    latent = LatentTransport(dimension=2, steps=2).fit(torch.randn(9, 3), teacher=str(tmp_path / "teacher"))
    latent.save_pretrained(tmp_path / "latent")
    for path in (tmp_path / "latent").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
    assert "of `teacher`" in (tmp_path / "latent" / "README.md").read_text()


def test_mistakes_are_named(classes):
    features, labels, latent = classes
    for name in ("dimension", "neighbours", "max_points", "steps"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got 0"):
            LatentTransport(**{name: 0})
    for name in ("mixing", "jitter"):
        with pytest.raises(ValueError, match=f"{name} must be a finite number of at least 0, got -1"):
            LatentTransport(**{name: -1})
    with pytest.raises(RuntimeError, match="nothing was fitted yet"):
        LatentTransport().sample(3)
    with pytest.raises(RuntimeError, match="nothing was fitted yet"):
        LatentTransport().save_pretrained("nowhere-at-all")
    with pytest.raises(TypeError, match="features must be a tensor"):
        LatentTransport().fit(features.long())
    with pytest.raises(ValueError, match="features must be finite"):
        LatentTransport().fit(features / 0)
    with pytest.raises(ValueError, match="labels must be 60 whole numbers"):
        LatentTransport().fit(features, labels[:-1])
    with pytest.raises(ValueError, match=r"held_out must have shape \(n, d\), got \(60, 9\)"):
        LatentTransport().fit(features, held_out=features[:, 1:])
    with pytest.raises(ValueError, match=r"label 5 was not among those it was fitted with: \[3, 7\]"):
        latent.sample(3, 5)
    with pytest.raises(ValueError, match="label must be one whole number or 3 of them"):
        latent.sample(3, torch.tensor([3, 7]))
    with pytest.raises(ValueError, match="fitted with labels: give label"):
        latent.transport(torch.randn(3, 4))
    with pytest.raises(ValueError, match=r"noise must be \(n, 4\), got \(3, 5\)"):
        latent.transport(torch.randn(3, 5), 3)
    with pytest.raises(ValueError, match="fitted without labels"):
        LatentTransport(steps=1).fit(features).sample(3, 0)


def test_the_core_does_not_need_the_hub():
    script = "import sys, hf_reprot.experimental.latent.semidiscrete; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
