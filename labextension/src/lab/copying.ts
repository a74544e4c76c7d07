// Copying from a command: it has no place of its own where a text could stand that the browser does not let be copied.
import { Dialog, Notification, showDialog } from '@jupyterlab/apputils';
import { Widget } from '@lumino/widgets';
import { copy } from '../clipboard';
import { Translate } from '../view';

const SHOWN_MILLISECONDS = 5000;

/** Copies it and says so; where that cannot be had, shows it to be copied by hand. */
export async function copyOrShow(text: string, said: string, translate: Translate): Promise<void> {
  try {
    await copy(text);
  } catch {
    const title = translate('The browser does not let it be copied: copy it by hand');
    await showDialog({ title, body: field(text), focusNodeSelector: 'textarea', buttons: [Dialog.okButton()] });
    return;
  }
  Notification.success(said, { autoClose: SHOWN_MILLISECONDS });
}

function field(text: string): Widget {
  const node = document.createElement('textarea');
  node.className = 'kn-by-hand';
  node.readOnly = true;
  node.rows = 6;
  node.value = text;
  node.addEventListener('focus', () => node.select());
  const body = new Widget();
  body.node.append(node);
  return body;
}
