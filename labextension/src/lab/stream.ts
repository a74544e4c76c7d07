// The state of all pools, live while somebody looks: a WebSocket, and plain requests while there is none.
import { Poll } from '@lumino/polling';
import { applyPatch } from '../patch';
import { State } from '../state';
import { Link } from '../view';

// the server says something each 2 s, if only "tick"
const SILENCE_MILLISECONDS = 4000;
const RETRY_MILLISECONDS = { first: 1000, most: 30000 };
const POLL_MILLISECONDS = { interval: 2000, most: 5000 };

/** Why there is no state: no extension at the server, no right to it, or no server. */
export type Reason = 'missing' | 'refused' | 'down';

export class Trouble extends Error {
  constructor(readonly reason: Reason) {
    super(reason);
  }
}

/** Where states come from. */
export interface Source {
  socket(): WebSocket;
  state(): Promise<State>;
}

/** What is known now; `trouble` is said only while the link is down. */
export interface News {
  state: State;
  link: Link;
  trouble?: Reason;
}

type Message = { kind: 'state'; state: State } | { kind: 'patch'; patch: unknown } | { kind: 'tick' };

export class Stream {
  constructor(
    private readonly source: Source,
    private readonly tell: (news: News) => void
  ) {
    this.poll = new Poll({
      auto: false,
      name: 'kalavai_nb:state',
      standby: 'when-hidden',
      factory: () => this.ask()
    });
    // set afterwards, since the constructor of a Poll raises `max` to its own default, 30 s
    this.poll.frequency = { interval: POLL_MILLISECONDS.interval, backoff: true, max: POLL_MILLISECONDS.most };
  }

  get state(): State {
    return this.news.state;
  }

  start(): void {
    if (!this.running) {
      this.running = true;
      this.say({ link: 'connecting' });
      this.open();
    }
  }

  /** Nothing is sent or asked any more; the last state is kept for the next start. */
  stop(): void {
    this.running = false;
    this.drop();
    clearTimeout(this.retry);
    void this.poll.stop();
  }

  dispose(): void {
    this.stop();
    this.poll.dispose();
  }

  private open(): void {
    clearTimeout(this.retry);
    this.drop();
    const socket = this.source.socket();
    this.socket = socket;
    this.expectMessage();
    socket.onmessage = event => this.hear(String(event.data));
    socket.onclose = () => this.lose();
  }

  private hear(text: string): void {
    const message = JSON.parse(text) as Message;
    this.expectMessage();
    this.delay = RETRY_MILLISECONDS.first;
    void this.poll.stop();
    if (message.kind === 'state') {
      this.say({ link: 'live', state: message.state });
    } else if (message.kind === 'patch') {
      this.say({ link: 'live', state: applyPatch(this.news.state, message.patch) });
    } else if (this.news.link !== 'live') {
      this.say({ link: 'live' });
    }
  }

  /** The socket closed, or was silent for so long that nobody can be at its other end. */
  private lose(): void {
    this.drop();
    if (this.news.link === 'live') {
      this.say({ link: 'down', trouble: 'down' }); // at once: what is on the screen is old from now on
    }
    this.retry = setTimeout(() => this.open(), this.delay);
    this.delay = Math.min(this.delay * 2, RETRY_MILLISECONDS.most);
    void this.poll.start(); // at once; nothing where it runs already
  }

  private async ask(): Promise<void> {
    let state: State;
    try {
      state = await this.source.state();
    } catch (error) {
      if (this.running && this.news.link !== 'live') {
        this.say({ link: 'down', trouble: error instanceof Trouble ? error.reason : 'down' });
      }
      throw error; // for the poll, which then waits longer
    }
    if (!this.running || this.news.link === 'live') {
      return;
    }
    const back = this.news.link === 'down';
    this.say({ link: 'polling', state });
    if (back) {
      this.delay = RETRY_MILLISECONDS.first;
      this.open(); // the server answers again: do not wait for the doubling timer
    }
  }

  private expectMessage(): void {
    clearTimeout(this.silence);
    this.silence = setTimeout(() => this.lose(), SILENCE_MILLISECONDS);
  }

  private drop(): void {
    clearTimeout(this.silence);
    const { socket } = this;
    this.socket = null;
    if (socket) {
      socket.onmessage = socket.onclose = null;
      socket.close();
    }
  }

  private say(news: Omit<News, 'state'> & { state?: State }): void {
    this.news = { state: this.news.state, ...news };
    this.tell(this.news);
  }

  private readonly poll: Poll;
  private news: News = { state: { version: 1, pools: {} }, link: 'connecting' };
  private running = false;
  private socket: WebSocket | null = null;
  private delay = RETRY_MILLISECONDS.first;
  private retry: ReturnType<typeof setTimeout> | undefined;
  private silence: ReturnType<typeof setTimeout> | undefined;
}
