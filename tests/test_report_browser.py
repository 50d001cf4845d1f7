"""The evaluation report in a real browser: it works as people use it, and asks nobody anything."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.photos import draw
from helpers.reports import (
    embeddings,
    image_set,
    large,
    leave_one_out,
    mixtures,
    of_test,
    synthetic,
    told_of_drift,
    told_of_text,
    written,
)
from playwright.sync_api import Browser, Page, expect, sync_playwright

from lookalike.evaluation.interpolation import write_trade_off
from lookalike.evaluation.results import interpolation_file

pytestmark = pytest.mark.browser

EVIL = "</script><script>alert(1)</script>\"'&amp;<img src=x onerror=alert(2)>"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's own Chromium."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.fail(f"none of {', '.join(BROWSERS)} is on the PATH: apt-get install chromium")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=found, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of 24 classes with 3 images each; one class and its files have evil names."""
    root = tmp_path_factory.mktemp("report")
    of_class = torch.arange(72) % 24
    names, labels = [], []
    for i, number in enumerate(of_class.tolist()):
        label = EVIL if number == 0 else f"class {number:02}"
        name = f"{'<b>bold & evil' if number == 0 else 'image'} {i:02}.png"
        draw(number, i).save(root / name)
        names.append(name)
        labels.append(label)
    side = image_set(names, labels, root)
    for epoch, noise in enumerate((1.2, 0.7)):
        written(root, epoch, leave_one_out(embeddings(of_class, noise=noise), side))
    return root / "results" / "report.html"


class Opened:
    """A page, and whatever it complained about or asked for."""

    def __init__(
        self, browser: Browser, path: Path, size: tuple[int, int], scheme: str, *, phone: bool
    ) -> None:
        self.troubles: list[str] = []
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if scheme == "dark" else "light",
            is_mobile=phone,
            has_touch=phone,
        )
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", lambda dialog: self.troubles.append(dialog.message))
        self.page.on("request", lambda request: self._note(request.url, path.as_uri()))
        self.page.goto(path.as_uri())

    def _note(self, url: str, own: str) -> None:
        if not url.startswith("data:") and url.partition("#")[0] != own:
            self.troubles.append(url)


def opened(
    browser: Browser, path: Path, size: tuple[int, int], scheme: str = "light", phone: bool = False
) -> Iterator[Page]:
    """The page, which must have had nothing to complain about by the end."""
    one = Opened(browser, path, size, scheme, phone=phone)
    yield one.page
    one.context.close()
    assert one.troubles == []


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """The report on a desk."""
    yield from opened(browser, report, DESKTOP)


@pytest.fixture
def phone(browser: Browser, report: Path) -> Iterator[Page]:
    """The report on a phone."""
    yield from opened(browser, report, PHONE, phone=True)


def column(page: Page, number: int) -> list[str]:
    """The texts of one column of the table of classes."""
    return page.locator(f"#classes tbody tr td:nth-child({number})").all_inner_texts()


def shares(texts: list[str]) -> list[float]:
    return [float(text.rstrip("%")) for text in texts]


def test_it_opens_and_draws_everything(page: Page) -> None:
    expect(page.locator(".verdict .sentence")).to_contain_text("the first result is right for")
    expect(page.locator(".plot .main-svg:first-child")).to_have_count(3)
    expect(page.locator(".strip")).to_have_count(10)
    sizes = page.locator(".strip img").evaluate_all("all => all.map(one => one.naturalWidth)")
    assert len(sizes) == 10 * 11
    assert min(sizes) > 0


def test_a_heading_sorts_the_classes_and_sorts_them_back(page: Page) -> None:
    before = shares(column(page, 3))
    assert before == sorted(before)  # worst first
    page.get_by_role("button", name="mAP", exact=True).click()
    assert shares(column(page, 6)) == sorted(shares(column(page, 6)))
    page.get_by_role("button", name="mAP", exact=True).click()
    assert shares(column(page, 6)) == sorted(shares(column(page, 6)), reverse=True)
    page.get_by_role("button", name="Class", exact=True).click()
    assert column(page, 1)[1:] == sorted(column(page, 1)[1:])


@pytest.mark.parametrize("which", ["wrong", "fixed", "broken"])
def test_a_filter_shows_the_queries_it_names_and_their_number(page: Page, which: str) -> None:
    words = page.locator(f".tile[data-filter={which}] strong").inner_text()
    page.locator(f".choice [data-filter={which}]").click()
    number = int(words)
    expected = "No query" if number == 0 else f"{number} quer"
    expect(page.locator("#counted")).to_contain_text(re.compile(f"^{expected}"))
    for _ in range(number // 10 + 1):
        if page.locator("#more").is_visible():
            page.locator("#more").click()
    expect(page.locator(".strip")).to_have_count(number)
    if which == "wrong":
        expect(page.locator(".strip .results .thumb:first-child.wrong")).to_have_count(number)
    if which == "fixed":
        assert number > 0
        expect(page.locator(".strip .badge")).to_have_text(["fixed"] * number)


def test_a_confusion_shows_its_queries_and_nothing_else(page: Page) -> None:
    page.locator("#confusion").select_option(index=1)
    chosen = page.locator("#confusion option:checked").inner_text()
    found = re.fullmatch(r"(.+) → (.+) \((\d+)\)", chosen)
    assert found is not None
    strips = page.locator(".strip")
    expect(strips).to_have_count(int(found[3]))
    expect(strips.first.locator(".head strong")).to_have_text(found[1])
    first = strips.first.locator(".results .thumb:first-child figcaption").nth(1)
    expect(first).to_have_text(found[2])


def test_search_finds_names_and_classes_and_says_when_there_is_none(page: Page) -> None:
    page.get_by_role("searchbox").fill("CLASS 07")
    expect(page.locator(".strip")).to_have_count(3)
    page.get_by_role("searchbox").fill("image 07")
    expect(page.locator(".strip")).to_have_count(1)
    page.get_by_role("searchbox").fill("no such thing")
    expect(page.locator("#counted")).to_have_text("No query in this file is like this.")


def test_a_class_of_the_table_leads_to_its_queries(page: Page) -> None:
    page.get_by_role("button", name="class 05", exact=True).click()
    expect(page.locator(".strip")).to_have_count(3)
    expect(page.locator("#queries-title")).to_be_in_viewport()


def test_a_class_is_found_by_what_it_is_not_by_letters_it_shares(
    browser: Browser, tmp_path: Path
) -> None:
    of_class = torch.arange(60) % 20  # "1" is a part of "10" and of every image's name
    side = image_set(
        [f"1{i:02}.png" for i in range(60)], [str(n) for n in of_class.tolist()], tmp_path
    )
    written(tmp_path, 0, leave_one_out(embeddings(of_class, noise=0.7), side))
    for page in opened(browser, tmp_path / "results" / "report.html", DESKTOP):
        page.get_by_role("button", name="1", exact=True).click()
        expect(page.locator(".strip")).to_have_count(3)
        expect(page.locator("#counted")).to_have_text("3 queries of class 1")
        page.get_by_role("button", name="All", exact=True).click()
        expect(page.locator("#counted")).to_have_text("60 queries")


def test_where_queries_are_a_choice_the_whole_number_is_told(
    browser: Browser, tmp_path: Path
) -> None:
    written(tmp_path, 0, large(5000, 50))
    for page in opened(browser, tmp_path / "results" / "report.html", DESKTOP):
        total = page.locator(".tile[data-filter=wrong] strong").inner_text()
        page.locator(".tile[data-filter=wrong]").click()
        expect(page.locator("#counted")).to_contain_text(f" of {total} queries, those in this file")


def test_the_keyboard_reaches_the_controls_and_they_answer(page: Page) -> None:
    for _ in range(40):
        page.keyboard.press("Tab")
        if (
            page.evaluate("document.activeElement.dataset?.filter") == "wrong"
            and page.evaluate("document.activeElement.tagName") == "BUTTON"
        ):
            break
    page.keyboard.press("Enter")
    expect(page.locator("button[data-filter=wrong]")).to_have_attribute("aria-pressed", "true")
    page.locator("#classes thead button").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#classes thead th").first).to_have_attribute("aria-sort", "ascending")
    page.locator("[data-figure=map]").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#peek")).to_be_visible()
    first = page.locator("#peek").inner_text()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#peek")).not_to_have_text(first)
    page.keyboard.press("Escape")
    expect(page.locator("#peek")).to_be_hidden()


def test_pointing_at_the_map_shows_the_image(page: Page) -> None:
    page.locator("#map").scroll_into_view_if_needed()
    page.locator("[data-figure=map] .point").first.hover(force=True)
    expect(page.locator("#peek img")).to_be_visible()
    expect(page.locator("#peek")).to_contain_text(".png")


def test_the_theme_switches_and_the_plots_follow(page: Page) -> None:
    line = page.locator("[data-figure=curves] .js-line").first

    def colours() -> tuple[str, str]:
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return paper, line.evaluate("one => getComputedStyle(one).stroke")

    light = colours()
    page.locator("#theme").click()
    dark = colours()
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    page.locator("#theme").click()
    assert colours() == light


def test_whoever_likes_it_dark_gets_it_dark_at_once(browser: Browser, report: Path) -> None:
    for page in opened(browser, report, DESKTOP, scheme="dark"):
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
        line = page.locator("[data-figure=curves] .js-line").first
        assert line.evaluate("one => getComputedStyle(one).stroke") == "rgb(124, 172, 255)"


def test_a_phone_scrolls_down_and_never_sideways(phone: Page) -> None:
    width = phone.evaluate("document.documentElement.scrollWidth")
    assert width == PHONE[0]
    phone.locator("#map").scroll_into_view_if_needed()
    phone.locator("[data-figure=map] .point").first.tap(force=True)
    expect(phone.locator("#peek")).to_be_visible()
    box = phone.locator("#peek").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE[0]


def test_evil_names_are_shown_as_what_they_are(page: Page) -> None:
    page.get_by_role("searchbox").fill("<b>bold & evil 00")
    expect(page.locator(".strip .head strong")).to_have_text(EVIL)
    expect(page.locator(".strip .head .muted")).to_have_text("<b>bold & evil 00.png")
    assert EVIL in column(page, 1)
    assert page.locator("main b").count() == 0


def test_right_and_wrong_are_said_in_words(page: Page) -> None:
    alts = page.locator(".strip .results img").evaluate_all("all => all.map(one => one.alt)")
    assert alts
    for alt in alts:
        assert re.match(r"rank \d+, (right|wrong), .*similarity -?\d\.\d{3}, ", alt)


def test_a_phone_has_room_for_a_report_of_names(browser: Browser, tmp_path: Path) -> None:
    written(tmp_path, 0, synthetic(30, 5))
    for page in opened(browser, tmp_path / "results" / "report.html", PHONE, phone=True):
        expect(page.locator(".strip .unseen").first).to_have_text(re.compile(r"^\d{6}\.jpg$"))
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]


def test_a_report_without_labels_works_as_well(browser: Browser, tmp_path: Path) -> None:
    written(tmp_path, 0, synthetic(30, 5, labelled=False))
    for page in opened(browser, tmp_path / "results" / "report.html", DESKTOP):
        expect(page.locator("#counted")).to_have_text("30 queries")
        expect(page.locator(".strip")).to_have_count(10)
        expect(page.locator(".strip").first.locator(".frame")).to_have_count(11)
        page.get_by_role("searchbox").fill("000003")
        expect(page.locator(".strip")).to_have_count(1)
        expect(page.locator("[data-figure=map] .point")).to_have_count(30)


def test_few_classes_have_a_colour_each_whatever_they_are_called(
    browser: Browser, tmp_path: Path
) -> None:
    side = image_set([f"{i}.jpg" for i in range(20)], [EVIL if i % 2 else "b" for i in range(20)])
    written(tmp_path, 0, leave_one_out(embeddings(torch.arange(20) % 2, noise=1.0), side))
    for page in opened(browser, tmp_path / "results" / "report.html", DESKTOP):
        texts = page.locator("[data-figure=map] .legendtext").all_text_contents()
        assert texts == [EVIL, "b"]


@pytest.fixture(scope="module")
def text_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that lost text search, with mixtures of its weights."""
    root = tmp_path_factory.mktemp("text")
    table = [(i / 10, 0.3 + 0.4 * i / 10, 0.8 - 0.5 * (i / 10) ** 2) for i in range(11)]
    made = synthetic(40, 4)
    write_trade_off(interpolation_file(root), of_test(mixtures(*table), made))
    for epoch, (mean, cosine) in enumerate(((0.8, 1.0), (0.3, 0.85))):
        about = told_of_text(mean) | told_of_drift(cosine, cosine)
        written(root, epoch, made, about)
    return root / "results" / "report.html"


def test_text_search_drift_and_mixtures_are_drawn_with_a_mark_and_a_number_at_each(
    browser: Browser, text_report: Path
) -> None:
    for page in opened(browser, text_report, DESKTOP):
        expect(page.locator(".plot .main-svg:first-child")).to_have_count(6)
        expect(page.locator("[data-figure=text] .scatterlayer .js-line")).to_have_count(4)
        expect(page.locator("[data-figure=drift] .scatterlayer .js-line")).to_have_count(2)
        expect(page.locator("[data-figure=trade] .scatterlayer .point")).to_have_count(11 + 3)
        numbers = page.locator("[data-figure=trade] .scatterlayer .textpoint").all_text_contents()
        assert numbers == [f"{i / 10:g}" for i in range(11)]
        legend = page.locator("[data-figure=trade] .legendtext").all_text_contents()
        assert legend == ["mixtures", "before training", "after training", "chosen"]
        expect(page.locator("#mixtures tr.chosen")).to_have_count(1)
        page.locator(".tile[href='#text']").click()
        expect(page.locator("#text-title")).to_be_in_viewport()


def test_a_chosen_mixture_has_the_colour_of_what_is_right_in_the_dark(
    browser: Browser, text_report: Path
) -> None:
    for page in opened(browser, text_report, DESKTOP, scheme="dark"):
        ring = page.locator("[data-figure=trade] .scatterlayer .trace").last.locator(".point")
        assert ring.evaluate("one => getComputedStyle(one).stroke") == "rgb(76, 196, 134)"


def test_a_phone_has_room_for_text_search_and_mixtures(browser: Browser, text_report: Path) -> None:
    for page in opened(browser, text_report, PHONE, phone=True):
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
        cards = page.locator("#text .card").evaluate_all(
            "all => all.map(one => one.getBoundingClientRect().top)"
        )
        assert len(set(cards)) == 2  # two rows of two
        wide = page.locator("#mixtures table").evaluate("one => one.scrollWidth")
        assert wide <= PHONE[0] - 2 * 14
