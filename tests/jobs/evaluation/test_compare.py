"""The comparison's figures on hand-made scores, its tables and its page, and what the command line names."""

import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest

from jobs.evaluation.compare import compare
from jobs.evaluation.compare.compare import entrants_of, settings_of
from jobs.evaluation.compare.figures import Results
from jobs.evaluation.compare.figures import compare as compare_figures
from jobs.html import comparison
from jobs.workspace import StageError
from model import artifact
from model.ctr.evaluation.encoders import Sample
from model.errors import CourierError

PROBES = (("popular", "auc"), ("popular", "recall_at_10"), ("popular", "mrr"), ("category", "auc"), ("page", "auc"))
FACTS = {"encoder": "courier-small", "steps": 400, "seconds": 10.0, "collapse": {"deviation": 0.9}}


def sample(value, width=0.001):
    return Sample(value, value + width * np.linspace(-1, 1, 41))


def result(label, aucs, probe=0.6, seeds=(0, 1)):
    """aucs: image input -> AUC of seed 0; seed 1 stands .01 higher. Cold items gain nothing."""
    found = Results(label)
    for images, auc in aucs.items():
        for part in ("all", "warm", "cold"):
            found.ctr["lightgbm", images, part] = {k: sample(0.5 if part == "cold" else auc + 0.01 * k) for k in seeds}
    if label not in ("none", "true_style"):
        for kind, name in PROBES:
            for part in ("all", "warm", "cold"):
                found.probe[kind, name, part] = {k: sample(probe + 0.01 * k) for k in seeds}
        found.facts.update(dict.fromkeys(seeds, FACTS))
    return found


def images(vector, simscore, cluster_id):
    return {"vector": vector, "simscore": simscore, "cluster_id": cluster_id}


@pytest.fixture
def results():
    return [
        result("none", {"none": 0.60}),
        result("true_style", {"true_style": 0.65}),
        result("courier", images(0.61, 0.63, 0.64), probe=0.70),
        result("imagenet", images(0.61, 0.60, 0.62), probe=0.62),
        result("clip", images(0.60, 0.61, 0.61), probe=0.64),
        result("random", images(0.60, 0.60, 0.60), probe=0.50, seeds=(1, 2)),
    ]


@pytest.fixture
def found(results):
    figures = compare_figures(results, reference="courier", bootstrap=50, seed=0)
    return figures | {
        "dataset": {
            "name": "a shop <b>",
            "sampled_negatives": False,
            "test_rows": 1000,
            "cold_test_rows": 10,
            "test_users": 50,
        },
        "settings": {"courier": {"method": "courier"}},
        "bootstrap": 50,
        "asked": {"period": "valid", "match": None},
        "failures": [],
    }


def by_name(lines, name="label"):
    return {line[name]: line for line in lines}


def test_gains_are_against_the_same_model_without_images_by_the_same_seed(found):
    gain = by_name(found["methods"])["courier"]["gains"]["lightgbm/cluster_id/all"]
    assert gain["value"] == pytest.approx(0.04)
    assert gain["by_seed"] == pytest.approx([0.04, 0.04])  # the baseline of seed 1 stands .01 higher too
    assert gain["spread"] == pytest.approx(0, abs=1e-12)
    assert found["baseline"]["lightgbm/none/all"]["by_seed"] == pytest.approx([0.60, 0.61])
    random = by_name(found["methods"])["random"]
    assert random["seeds"] == [1, 2]
    assert len(random["gains"]["lightgbm/vector/all"]["by_seed"]) == 1  # there is no baseline of seed 2


def test_a_collapse_figure_is_the_mean_over_the_seeds_that_have_it(results):
    courier = next(one for one in results if one.label == "courier")
    for seed, (entropy, alignment) in enumerate([(0.5, None), (None, None)]):
        courier.facts[seed] = FACTS | {"collapse": {"attention_entropy": entropy, "alignment": alignment}}
    found = compare_figures(results, reference="courier", bootstrap=5, seed=0)
    assert by_name(found["methods"])["courier"]["collapse"] == {"attention_entropy": 0.5, "alignment": None}


def test_the_reference_is_held_against_each_baseline_seed_by_seed(found):
    assert found["reference"] == "courier"
    against = by_name(found["against"], "baseline")
    assert list(against) == ["imagenet", "clip", "random"]
    assert against["imagenet"]["ctr"]["lightgbm/simscore/all"]["value"] == pytest.approx(0.03)
    assert against["imagenet"]["probe"]["popular/auc/warm"]["value"] == pytest.approx(0.08)
    assert len(against["random"]["ctr"]["lightgbm/simscore/all"]["by_seed"]) == 1  # seed 1, which both have
    assert against["clip"]["ctr"]["lightgbm/simscore/all"]["p_value"] == pytest.approx(2 / 42)


def test_the_share_of_what_the_true_labels_give(found):
    courier = by_name(found["methods"])["courier"]
    assert courier["gains"]["lightgbm/cluster_id/all"]["share"]["value"] == pytest.approx(0.8)
    assert courier["gains"]["lightgbm/simscore/all"]["share"]["value"] == pytest.approx(0.6)
    assert found["true_style"]["lightgbm/true_style/all"]["value"] == pytest.approx(0.05)


def test_the_papers_order_holds_where_each_step_rises(found):
    orders = {name: line["order"]["lightgbm"] for name, line in by_name(found["methods"]).items()}
    assert orders["courier"]["holds"]
    assert orders["courier"]["cluster_id over simscore"]["value"] == pytest.approx(0.01)
    assert not orders["imagenet"]["holds"]  # SimScore lies below the vector
    assert not orders["clip"]["holds"]  # cluster IDs are no more than as good as SimScore


def test_the_probe_foretells_the_gain_over_all_runs():
    ranked = [result(f"m{n}", images(0.6, 0.6 + 0.01 * n, 0.7 - 0.01 * n), probe=0.5 + 0.02 * n) for n in range(5)]
    found = compare_figures([result("none", {"none": 0.60}), *ranked], reference="courier", bootstrap=50, seed=0)
    asked = {(one["probe"], one["gain"]): one for one in found["prediction"]}
    assert len(asked) == len(PROBES) * 3
    # the two seeds of a method tie in gain and differ in the probe, so a perfect order falls a little short of 1
    assert asked["popular/auc", "lightgbm/simscore"]["value"] == pytest.approx(0.985, abs=0.01)
    assert asked["popular/auc", "lightgbm/cluster_id"]["value"] == pytest.approx(-0.985, abs=0.01)
    assert asked["page/auc", "lightgbm/simscore"]["runs"] == 10


def test_what_is_left_of_an_effect_is_of_the_clicks_that_have_the_attribute(results):
    for number, one in enumerate(results[2:]):
        for part in ("all", "warm", "cold"):
            seeds = sorted(one.facts)
            one.probe["matched", "auc", part] = {k: sample(0.55) for k in seeds}
            one.probe["comparable", "auc", part] = {k: sample(0.6 + 0.1 * (number == 0)) for k in seeds}
    found = compare_figures(results, reference="courier", bootstrap=50, seed=0)
    left = {name: line["left"] for name, line in by_name(found["methods"]).items()}
    assert left["courier"]["warm"]["value"] == pytest.approx(0.25)
    assert left["clip"]["cold"]["value"] == pytest.approx(0.5)
    for one, value in (("matched", 1.25), ("popular", 12.0)):
        found["methods"][0]["probe"][f"{one}/distance/warm"] = {"value": value}
    sheet = comparison.sheets(found | {"asked": {"period": "test", "match": "year"}})[0]
    assert "alike in year, which differs by 1.2 (by popularity 12.0) for warm clicks, differs by - (by" in sheet.caption
    assert sheet.lines[0][-2:] == ("25% (25% to 25%)",) * 2


def test_where_no_run_of_the_first_got_to_its_end_no_other_takes_its_place(results):
    rest = compare_figures(
        [one for one in results if one.label != "courier"], reference="courier", bootstrap=50, seed=0
    )
    assert (rest["reference"], rest["against"]) == ("courier", [])
    assert comparison.headline(rest) == "No run of courier got to its end: it is held against nothing."


def test_a_comparison_without_truth_or_baselines_is_no_crash(results, found):
    alone = compare_figures([results[0], results[2]], reference="courier", bootstrap=50, seed=0)
    assert alone["against"] == []
    assert alone["true_style"] == {}
    assert "share" not in alone["methods"][0]["gains"]["lightgbm/vector/all"]
    assert comparison.headline(alone) == "There is nothing that the runs could be held against."
    json.dumps(alone, allow_nan=False)
    more = {name: found[name] for name in ("dataset", "settings", "bootstrap", "asked", "failures")}
    assert "<svg" in comparison.render(alone | more)


def test_a_page_of_figures_none_of_which_is_defined_says_so(results, found):
    for one in results:
        of_clicks = {key: {seed: sample(math.nan) for seed in each} for key, each in one.ctr.items()}
        one.ctr.update(of_clicks)
    undefined = found | compare_figures(results, reference="courier", bootstrap=5, seed=0)
    json.dumps(undefined, allow_nan=False)
    page = comparison.render(undefined)
    assert "without images, whose AUC is not defined" in page
    assert ">nan<" not in page.lower()
    assert "None" not in page


def test_a_figure_that_is_not_known_is_null_and_a_dash(results, found):
    for one in results:
        for key in one.ctr:
            if key[2] == "cold":
                one.ctr[key] = dict.fromkeys(one.ctr[key], Sample(math.nan, np.full(41, math.nan)))
    unknown = compare_figures(results, reference="courier", bootstrap=50, seed=0)
    json.dumps(unknown, allow_nan=False)
    sheet = next(s for s in comparison.sheets(found | unknown) if "for new ones" in s.title)
    assert sheet.lines[0][sheet.columns.index("SimScore, cold")] == "-"


# --- tables and page -------------------------------------------------------------------------------------------------


def test_the_tables_tell_the_figures_in_points(found, capsys):
    found["failures"] = [{"label": "simsiam", "seed": 2, "error": "Collapsed: [rank] 1.2"}]
    compare.print_tables(found)
    told = capsys.readouterr().out
    for text in ("+4.00 (+4.00 to +4.00) ± 0.00", "80% (80% to 80%)", "+8.00, p = 0.048"):
        assert text in told
    assert "failed: simsiam, seed 2: Collapsed: [rank] 1.2" in told
    assert "…" not in told


def test_a_table_with_a_matched_attribute_is_told_uncut_on_a_narrow_terminal(results, found, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    for one in results[2:]:
        for part in ("all", "warm", "cold"):
            for kind in ("matched", "comparable"):
                one.probe[kind, "auc", part] = dict.fromkeys(one.facts, sample(0.61234))
    asked = {"asked": {"period": "test", "match": "year"}}
    compare.print_tables(found | compare_figures(results, reference="courier", bootstrap=50, seed=0) | asked)
    told = capsys.readouterr().out
    assert "0.6123 ± 0.0000" in told
    assert "left when alike" in told
    assert "…" not in told


def test_the_reference_is_held_against_the_others_on_warm_and_on_new_items_too(found):
    sheets = [sheet for sheet in comparison.sheets(found) if "against the others, with" in sheet.title]
    assert [sheet.title.partition("LightGBM")[2] for sheet in sheets] == [
        "",
        ", on items clicked before",
        ", on new items",
    ]
    gains = [dict(zip(sheet.columns, sheet.lines[0], strict=True))["SimScore"] for sheet in sheets]
    assert [gain.split()[0] for gain in gains] == ["+3.00", "+3.00", "+0.00"]


def test_every_line_is_as_wide_as_its_table(found):
    for sheet in comparison.sheets(found):
        assert {len(line) for line in sheet.lines} == {len(sheet.columns)}, sheet.title


def test_the_headline_counts_the_baselines_that_are_surely_below(found):
    told = comparison.headline(found)
    assert told == "courier is above 0 of 3 with SimScore (LightGBM), 0 of 3 with cluster ID (LightGBM), p < 0.01."
    for baseline in found["against"]:
        baseline["ctr"]["lightgbm/cluster_id/all"]["p_value"] = 0.001
    found["against"][0]["ctr"]["lightgbm/cluster_id/all"]["value"] = -0.1
    assert "2 of 3 with cluster ID" in comparison.headline(found)


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.open += [tag] if tag not in ("meta", "link", "br") else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_loads_nothing_is_well_formed_and_the_same_each_time(found):
    tags, page = _Tags(), comparison.render(found)
    tags.feed(page)
    assert not tags.open
    assert all(source.startswith("#") for source in tags.sources)
    assert "a shop &lt;b&gt;" in page
    assert "Negatives are sampled" not in page
    assert page == comparison.render(found)
    found["dataset"]["sampled_negatives"] = True
    assert "Negatives are sampled" in comparison.render(found)


# --- the command line ------------------------------------------------------------------------------------------------


def test_methods_and_variants_are_named_on_the_command_line():
    variants = ["sharp:temperature=0.05,heads=8", "no-ucs:weight_ucs=0", "fine:clusters=64,heads=2,later_clusters=8"]
    variants += ["soft:temperature=0.3,method=simclr", "named:courier.temperature=0.3,steps=7"]
    found = entrants_of("courier, clip", variants)
    assert [(one.label, one.settings, one.codebook) for one in found] == [
        ("courier", {"method": "courier"}, {}),
        ("clip", {"method": "clip"}, {}),
        ("sharp", {"courier.temperature": 0.05, "courier.heads": 8}, {}),
        ("no-ucs", {"courier.weight_ucs": 0.0}, {}),
        ("fine", {"courier.heads": 2}, {"clusters": 64, "later_clusters": 8}),
        ("soft", {"simclr.temperature": 0.3, "method": "simclr"}, {}),
        ("named", {"courier.temperature": 0.3, "steps": 7}, {}),
    ]


def test_a_setting_for_every_method_may_leave_its_group_out_where_one_method_has_it():
    assert settings_of(["weight_ucs=0", "steps=3", "clusters=9"]) == (
        {"courier.weight_ucs": 0.0, "steps": 3},
        {"clusters": 9},
    )
    with pytest.raises(CourierError, match=r"'temperature' may be each of courier.temperature, simclr.temperature"):
        settings_of(["temperature=0.3"])


@pytest.mark.parametrize(
    ("methods", "variants", "said"),
    [
        ("courier,dino", [], "unknown method 'dino': choose among courier"),
        ("courier", ["../x:heads=8"], "write NAME:field=value"),
        ("courier", ["plain"], "write NAME:field=value"),
        (
            "courier",
            ["a:colour=8"],
            "unknown setting 'colour': There are method, .*; of the codebooks clusters, later_clusters",
        ),
        ("courier", ["a:heads=8,seed=5"], "setting seed is every run's own: leave it out"),
        ("courier", ["a:clusters=0"], "clusters is 0: give at least 1"),
        ("courier", ["a:clusters=many"], "clusters='many' is not a whole number: write clusters="),
        ("courier", ["courier:heads=8"], "the name 'courier' is taken"),
        ("", ["none:heads=8"], "the name 'none' is taken"),
        ("", [], "nothing to compare"),
    ],
)
def test_what_cannot_be_compared_is_refused(methods, variants, said):
    with pytest.raises(CourierError, match=said):
        entrants_of(methods, variants)


def test_the_newest_rows_of_the_present_sequences_are_taken(tmp_path):
    def write(kind, name, inputs):
        with artifact.write(tmp_path / kind / name, kind=kind, inputs=inputs, config={}) as draft:
            (draft.path / "x").write_text(name, "utf-8")
        return tmp_path / kind / name

    old, new = write("sequences", "old", {}), write("sequences", "new", {})
    write("rows", "stale", {"sequences": artifact.digest(old)})
    with pytest.raises(StageError, match="holds no CTR rows of its present sequences"):
        compare._rows(tmp_path, new)
    write("rows", "b", {"sequences": artifact.digest(new)})
    write("rows", "a", {"sequences": artifact.digest(new)})
    assert compare._rows(tmp_path, new).name == "a"
