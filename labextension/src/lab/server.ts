// The Jupyter server as the sidebar knows it: three addresses under its base URL, with its own token and XSRF cookie.
import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';
import { State } from '../state';
import { Translate, Verb } from '../view';
import { Source, Trouble } from './stream';
import { Summary } from './summary';

// after a laptop's sleep a connection may look open for minutes while nobody is at its other end
const PATIENCE_MILLISECONDS = 4000;
// the server itself waits 10 s for the notebook's answer
const ORDER_PATIENCE_MILLISECONDS = 15000;

export interface Answer {
  ok: boolean;
  text: string;
}

export class Server implements Source {
  constructor(
    private readonly settings: ServerConnection.ISettings,
    private readonly translate: Translate
  ) {}

  async state(): Promise<State> {
    return (await this.get('state')) as State;
  }

  async summary(): Promise<Summary> {
    return (await this.get('summary')) as Summary;
  }

  socket(): WebSocket {
    const { settings } = this;
    let url = URLExt.join(settings.wsUrl, 'kalavai-nb', 'stream');
    if (settings.appendToken && settings.token) {
      url += `?token=${encodeURIComponent(settings.token)}`;
    }
    return new settings.WebSocket(url);
  }

  /** Never rejects: what went wrong is a sentence like any other answer. */
  async order(pool: string, owner: string, verb: Verb, target: string): Promise<Answer> {
    try {
      const body = JSON.stringify({ pool, owner, verb, target });
      const response = await this.request('orders', { method: 'POST', body }, ORDER_PATIENCE_MILLISECONDS);
      const answer = (await response.json().catch(() => ({}))) as Partial<Answer> & { message?: string };
      const text = answer.text ?? answer.message ?? `${response.status} ${response.statusText}`;
      return { ok: response.ok && answer.ok === true, text };
    } catch {
      return { ok: false, text: this.translate('The Jupyter server does not answer, so nothing was changed for certain.') };
    }
  }

  private async get(what: string): Promise<unknown> {
    const response = await this.request(what, {}, PATIENCE_MILLISECONDS);
    if (response.status === 404) {
      throw new Trouble('missing');
    }
    if (response.status === 401 || response.status === 403) {
      throw new Trouble('refused');
    }
    if (!response.ok) {
      throw new Trouble('down');
    }
    return response.json();
  }

  private request(what: string, init: RequestInit, patienceMilliseconds: number): Promise<Response> {
    const url = URLExt.join(this.settings.baseUrl, 'kalavai-nb', what);
    const signal = AbortSignal.timeout(patienceMilliseconds);
    return ServerConnection.makeRequest(url, { ...init, signal }, this.settings);
  }
}
