// The panel in a notebook, as anywidget wants it: a model of traits in, the shared view out.
import { copy } from './clipboard';
import { NOTHING, State } from './state';
import { offered } from './translation';
import { Actions, Answer, mount, Translate, Verb } from './view';
import { duration, untranslated } from './view/words';

// the kernel says something each second; what is older than this is not of now
const SILENT_MILLISECONDS = 5000;
const LOOK_MILLISECONDS = 1000;
const ANSWER_MILLISECONDS = 15000;
const GATEWAY_TIMEOUT = 504;

interface Model {
  get(name: string): unknown;
  on(event: string, heard: (...values: never[]) => void): void;
  off(event: string, heard: (...values: never[]) => void): void;
  send(content: unknown): void;
}

interface Place {
  model: Model;
  el: HTMLElement;
}

function render({ model, el }: Place): () => void {
  const hiding = document.createElement('style');
  hiding.textContent = String(model.get('hides') ?? '');
  el.classList.add('kn-panel');
  el.append(hiding);
  // what was there when the page was opened may be of a kernel that is long gone
  let heard = -Infinity;
  const translate = offered() ?? untranslated;
  const kernel = new Kernel(model, translate, () => performance.now() - heard < SILENT_MILLISECONDS);
  const view = mount(el, { actions: kernel, translate, part: String(model.get('view') ?? '') });
  const draw = () => {
    const state = (model.get('state') ?? NOTHING) as State;
    const age = performance.now() - heard;
    const fresh = age < SILENT_MILLISECONDS;
    view.update(state, fresh ? 'live' : 'down', fresh ? undefined : old(state, age, translate));
  };
  const changed = () => {
    heard = performance.now();
    draw();
  };
  model.on('change:state', changed);
  const timer = setInterval(() => {
    if (performance.now() - heard >= SILENT_MILLISECONDS && document.visibilityState !== 'hidden') {
      draw();
    }
  }, LOOK_MILLISECONDS);
  draw();
  return () => {
    clearInterval(timer);
    model.off('change:state', changed);
    kernel.dispose();
    view.dispose();
    hiding.remove();
  };
}

/** "no news for 12 s", or of when it is, where nothing has come since the page was opened. */
function old(state: State, age: number, translate: Translate): string {
  if (Number.isFinite(age)) {
    return translate('no news for %1', duration(age / 1000));
  }
  const times = Object.values(state.pools ?? {}).map(pool => pool.snapshot?.time ?? 0);
  return times.length ? translate('as of %1', moment(new Date(1000 * Math.max(...times)))) : translate('connecting…');
}

/** The time of day; with its date, where that is not today's. */
function moment(date: Date): string {
  return date.toDateString() === new Date().toDateString() ? date.toLocaleTimeString() : date.toLocaleString();
}

/** Orders by the widget's own channel, which the kernel reads also while a cell runs; else by the Jupyter server. */
class Kernel implements Actions {
  constructor(
    private readonly model: Model,
    private readonly translate: Translate,
    private readonly isAlive: () => boolean
  ) {
    model.on('msg:custom', this.hear);
  }

  async order(pool: string, owner: string, verb: Verb, target: string): Promise<Answer> {
    return (await this.byServer(pool, owner, verb, target)) ?? this.byWidget(verb, target);
  }

  readonly copy = copy;

  dispose(): void {
    this.model.off('msg:custom', this.hear);
    this.waiting.clear();
  }

  /** Nothing where the page is not of a Jupyter server that has our extension. */
  private async byServer(pool: string, owner: string, verb: Verb, target: string): Promise<Answer | undefined> {
    try {
      const page = JSON.parse(document.getElementById('jupyter-config-data')?.textContent ?? '{}');
      if (typeof page.baseUrl !== 'string') {
        return undefined;
      }
      const xsrf = /(?:^|; )_xsrf=([^;]*)/.exec(document.cookie)?.[1] ?? '';
      const headers: Record<string, string> = { 'Content-Type': 'application/json', 'X-XSRFToken': xsrf };
      if (page.token) {
        headers.Authorization = `token ${page.token}`;
      }
      const url = new URL(`${page.baseUrl}kalavai-nb/orders`, location.origin);
      const body = JSON.stringify({ pool, owner, verb, target });
      const signal = AbortSignal.timeout(ANSWER_MILLISECONDS);
      const response = await fetch(url, { method: 'POST', credentials: 'same-origin', headers, body, signal });
      // it knows the notebook, and has asked it in vain: to ask once more by another way takes just as long
      const asked = response.ok || response.status === GATEWAY_TIMEOUT;
      if (!asked) {
        return undefined;
      }
      const said = (await response.json()) as Partial<Answer> & { message?: string };
      return { ok: response.ok && said.ok === true, text: said.text ?? said.message ?? '' };
    } catch {
      return undefined;
    }
  }

  private byWidget(verb: Verb, target: string): Promise<Answer> {
    const id = Array.from(crypto.getRandomValues(new Uint8Array(8)), byte => byte.toString(16).padStart(2, '0')).join('');
    return new Promise(resolve => {
      const late = setTimeout(() => {
        this.waiting.delete(id);
        const text = this.isAlive()
          ? this.translate('The notebook is busy with a cell and will do it afterwards.')
          : this.translate('The notebook does not answer: its kernel is gone, or cannot be reached. Nothing was done.');
        resolve({ ok: false, text });
      }, ANSWER_MILLISECONDS);
      this.waiting.set(id, answer => {
        clearTimeout(late);
        resolve(answer);
      });
      this.model.send({ id, verb, target });
    });
  }

  private readonly waiting = new Map<string, (answer: Answer) => void>();
  private readonly hear = (message: { id?: string; ok?: boolean; text?: string }): void => {
    const resolve = this.waiting.get(message.id ?? '');
    this.waiting.delete(message.id ?? '');
    resolve?.({ ok: message.ok === true, text: message.text ?? '' });
  };
}

export default { render };
