// The language of JupyterLab for the panel of a notebook: a widget is given no translator, but it is in the same page.
import { Translate } from './view';

const KEY = Symbol.for('kalavai_nb:translate');
const page = globalThis as unknown as Record<symbol, Translate | undefined>;

/** By the extension, once: whoever shows the view in this page may speak as it does. */
export function offer(translate: Translate): void {
  page[KEY] = translate;
}

/** Nothing where the page is of another front end, or without the extension. */
export function offered(): Translate | undefined {
  return page[KEY];
}
