// A cell for a pool, put where the person works: below the active cell of the notebook in front.
import { INotebookTracker, NotebookActions, NotebookPanel } from '@jupyterlab/notebook';

const LOAD = '%load_ext kalavai_nb';
const LOADS = /^\s*%(re)?load_ext\s+kalavai_nb\b/m;
const MAGIC = /^\s*%%?pool\b/;

/** Whether there was a notebook to insert into. A magic of ours is preceded by a cell that loads it, where no cell does. */
export function insertCell(tracker: INotebookTracker, source: string): boolean {
  const panel = tracker.currentWidget;
  if (!panel) {
    return false;
  }
  if (MAGIC.test(source) && !loadsUs(panel)) {
    insertBelow(panel, LOAD);
  }
  insertBelow(panel, source);
  panel.content.activate();
  return true;
}

function loadsUs(panel: NotebookPanel): boolean {
  return panel.content.widgets.some(cell => cell.model.type === 'code' && LOADS.test(cell.model.sharedModel.getSource()));
}

function insertBelow(panel: NotebookPanel, source: string): void {
  const notebook = panel.content;
  NotebookActions.insertBelow(notebook);
  NotebookActions.changeCellType(notebook, 'code'); // whatever type new cells have by the person's own settings
  notebook.activeCell?.model.sharedModel.setSource(source);
}
