import { Clipboard } from '@jupyterlab/apputils';

/** To the clipboard of the system, also over plain http, where browsers have no `navigator.clipboard`. */
export async function copy(text: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    Clipboard.copyToSystem(text);
  }
}
