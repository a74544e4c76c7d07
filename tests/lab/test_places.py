"""The sidebar among the other things of JupyterLab: its side, its settings, the keyboard, the clipboard, notebooks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import nbformat
import pytest
from playwright.sync_api import Browser, expect

from lab import SIDEBAR, Front, Lab
from synthetic import ADA, Published, busy

# those that the arrow keys go to, and not Tab, are left out
BUTTONS = f"#{SIDEBAR} button:not([tabindex='-1'])"
FOCUSED = f"""() => {{
  const at = document.activeElement;
  return [[...document.querySelectorAll("{BUTTONS}")].indexOf(at), at.getAttribute('aria-label')];
}}"""
OTHER = -1


@pytest.fixture(scope="module")
def published(lab: Lab) -> Iterator[Published]:
    with Published(lab.runtime, busy) as published:
        yield published


def test_tab_comes_to_every_button_and_enter_presses_it(published: Published, front: Front) -> None:
    page = front.page
    # which takes the focus when it comes
    expect(page.locator(".jp-Launcher")).to_be_visible()
    expect(front.sidebar.locator(".kn-device")).to_have_count(6)
    wanted = set(range(page.locator(BUTTONS).count()))
    to_press = {"Stop Cell 7", "Stop the sweep lr; what is done is kept", "Close the model SmolLM2-135M-Instruct"}
    reached: set[int] = set()
    while reached != wanted:
        front.sidebar.focus()
        # there are some that are no buttons
        walked = {_tab(front, to_press) for _ in range(len(wanted) + 4)} - {OTHER}
        assert walked - reached, f"Tab comes to {reached} of {wanted}"
        reached |= walked
    expect(front.sidebar.get_by_text("is done", exact=False)).to_have_count(3)
    ordered = {("stop_cell", "c"), ("stop_sweep", f"{ADA}/lr"), ("close_model", f"{ADA}/m")}
    assert set(published.orders) == ordered
    assert len(published.orders) == 3, "each once"


def _tab(front: Front, to_press: set[str]) -> int:
    """Go on to the next button of the sidebar, and press it if it is one of these; which one it was."""
    front.page.keyboard.press("Tab")
    place, name = front.page.evaluate(FOCUSED)
    if name in to_press:
        to_press.remove(name)
        front.page.keyboard.press("Enter")
    return int(place)


def test_an_invite_is_copied_also_where_the_page_may_not_use_the_clipboard(published: Published, front: Front) -> None:
    front.context.grant_permissions([])
    front.sidebar.get_by_role("button", name="Copy invite").click()
    expect(front.sidebar.get_by_text("Copied. Whoever has it")).to_be_visible()
    front.context.grant_permissions(["clipboard-read"])
    assert front.page.evaluate("navigator.clipboard.readText()").startswith("invite")


def test_a_cell_is_inserted_below_the_active_one_of_the_notebook_in_front(
    published: Published, browser: Browser, lab: Lab
) -> None:
    cells = [nbformat.v4.new_code_cell("first = 1"), nbformat.v4.new_code_cell("last = 2")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), lab.work / "insert.ipynb")
    front = Front(browser, lab, path="lab/tree/insert.ipynb")
    page = front.page
    # no kernel is needed
    expect(page.locator(".jp-Dialog")).to_be_visible()
    page.keyboard.press("Escape")
    front.open_sidebar()
    page.locator(".jp-CodeCell").first.click()
    insert = front.sidebar.get_by_role("button", name="Insert %%pool cell")
    insert.click()
    expect(page.locator(".jp-CodeCell")).to_have_count(4)
    insert.click()
    expect(page.locator(".jp-CodeCell")).to_have_count(5)
    sources = page.locator(".jp-CodeCell .cm-content").evaluate_all("all => all.map(each => each.innerText)")
    assert sources[0] == "first = 1"
    assert sources[1] == "%load_ext kalavai_nb"
    assert sources[2] == sources[3], "what loads us is needed once"
    assert sources[2].startswith("%%pool gpus=all\n")
    assert sources[4] == "last = 2"
    assert front.complaints == []
    front.close()


def test_settings_put_it_at_the_left_without_a_line_in_the_status_bar_and_with_pauses(
    published: Published, browser: Browser, lab: Lab
) -> None:
    lab.set("kalavai_nb", "plugin", side="left", statusBar=False, pauseSeconds=2)
    front = Front(browser, lab)
    page = front.page
    tab = page.locator(f'.jp-SideBar.jp-mod-left li[data-id="{SIDEBAR}"]')
    expect(tab).to_have_count(1)
    expect(page.locator(f'li[data-id="{SIDEBAR}"]')).to_have_count(1)
    front.open_sidebar()
    expect(page.locator(f"#jp-left-stack #{SIDEBAR}")).to_be_visible()
    expect(front.sidebar.locator(".kn-device")).to_have_count(6)
    page.evaluate(
        "() => { window.drawn = []; new MutationObserver(() => drawn.push(performance.now())).observe("
        "document.querySelector('.kn-machines'), {subtree: true, childList: true, characterData: true}) }"
    )
    page.wait_for_function("() => drawn.length && drawn.at(-1) - drawn[0] > 1500")
    drawn = page.evaluate("drawn")
    pauses = [later - before for before, later in itertools.pairwise(drawn) if later - before > 100]
    assert min(pauses) > 1700, pauses
    expect(page.locator(".kn-status")).to_have_count(0)
    page.reload()
    expect(tab).to_have_count(1)
    assert front.complaints == []
    front.close()
