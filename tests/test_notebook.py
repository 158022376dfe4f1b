"""klrl in a notebook, by the notebook among the site's pages, in a kernel of its own."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs/howto/notebooks.ipynb"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What the cells show once they have run, by the cells' names."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(PAGE, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "kept without outputs: the site's are new"
    folder = tmp_path_factory.mktemp("notebook")
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    assert [*folder.iterdir()] == []
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def text_of(output):
    """Its HTML without tags and colours."""
    return re.sub(r"<[^>]*>", "", output.data["text/html"])


def test_progress_is_one_panel_that_is_drawn_again_in_place(outputs):
    panel, agent = outputs["learn"]
    assert "TRPO, seed 0" in text_of(panel)
    assert "3,072 of 3,072" in text_of(panel)
    assert panel.output_type == "display_data"
    assert agent.output_type == "execute_result"
    panel, _ = outputs["resume"]
    assert "5,120 of 5,120" in text_of(panel)


def test_agents_and_histories_are_tables_and_a_plot_is_an_image(outputs):
    (before,), (_, after), (history,) = outputs["make"], outputs["learn"], outputs["history"]
    assert "<th>steps, updates</th><td>0, 0</td>" in before.data["text/html"]
    assert "<th>steps, updates</th><td>3,072, 6</td>" in after.data["text/html"]
    assert history.data["text/html"].count("<tr>") == 7
    assert "drift/kl_target" in text_of(history)
    (figure,) = outputs["plot"]
    assert len(figure.data["image/png"]) > 1_000


def test_an_interrupt_is_one_line_and_the_agent_goes_on_from_its_last_complete_update(outputs):
    panel, error = outputs["interrupt"]
    assert "4,096 of 5,120" in text_of(panel)
    line = "stopped: TRPO is as after its last complete update (4,096 steps, 8 updates); resume() goes on"
    assert (error.ename, error.traceback) == ("KeyboardInterrupt", [line])
    _, agent = outputs["resume"]
    assert "<th>steps, updates</th><td>5,120, 10</td>" in agent.data["text/html"]
