// The stream against a real server of real sockets: what it says of the link while that one dies, hangs and heals.
import assert from 'node:assert/strict';
import { createServer, Server as HttpServer, ServerResponse } from 'node:http';
import { AddressInfo } from 'node:net';
import { afterEach, beforeEach, test } from 'node:test';
import { WebSocket as Peer, WebSocketServer } from 'ws';
import { News, Stream, Trouble } from '../src/lab/stream';
import { State } from '../src/state';

const state = (...pools: string[]): State =>
  ({ version: 1, pools: Object.fromEntries(pools.map(id => [id, { snapshot: {}, owners: {} }])) }) as unknown as State;

/** A Jupyter server in small: GET anything gives `answer`, sockets are greeted unless it is deaf. */
class Jupyter {
  answer: (response: ServerResponse) => void = response => response.end(JSON.stringify(state('a')));
  greeting: object | null = { kind: 'state', state: state('a') };
  takesSockets = true;
  sockets = 0;
  private http!: HttpServer;
  private ws!: WebSocketServer;

  async up(port = 0): Promise<number> {
    this.http = createServer((_request, response) => this.answer(response));
    this.ws = new WebSocketServer({ noServer: true });
    this.http.on('upgrade', (request, socket, head) => {
      this.sockets += 1;
      if (!this.takesSockets) {
        socket.destroy();
        return;
      }
      this.ws.handleUpgrade(request, socket, head, peer => this.greeting && peer.send(JSON.stringify(this.greeting)));
    });
    await new Promise<void>(resolve => this.http.listen(port, '127.0.0.1', resolve));
    return (this.http.address() as AddressInfo).port;
  }

  send(message: object): void {
    this.ws.clients.forEach((peer: Peer) => peer.send(JSON.stringify(message)));
  }

  get listeners(): number {
    return this.ws.clients.size;
  }

  async down(): Promise<void> {
    this.ws.clients.forEach((peer: Peer) => peer.terminate());
    this.http.closeAllConnections();
    await new Promise(resolve => this.http.close(resolve));
  }
}

let jupyter: Jupyter;
let port: number;
let stream: Stream;
let said: News[];
let wake: () => void;

beforeEach(async () => {
  jupyter = new Jupyter();
  port = await jupyter.up();
  said = [];
  wake = () => undefined;
  stream = new Stream(
    {
      socket: () => new WebSocket(`ws://127.0.0.1:${port}/`),
      state: async () => {
        const response = await fetch(`http://127.0.0.1:${port}/`, { signal: AbortSignal.timeout(4000) });
        if (response.status === 404) {
          throw new Trouble('missing');
        }
        return (await response.json()) as State;
      }
    },
    news => {
      said.push(news);
      wake();
    }
  );
});
afterEach(async () => {
  stream.dispose();
  await jupyter.down().catch(() => undefined);
});

/** The first news from number `from` on that is as wanted, and its own number. */
async function heard(wanted: (news: News) => boolean, from = 0, milliseconds = 8000): Promise<{ news: News; number: number }> {
  const end = performance.now() + milliseconds;
  for (;;) {
    const number = said.findIndex((news, index) => index >= from && wanted(news));
    if (number >= 0) {
      return { news: said[number], number };
    }
    const left = end - performance.now();
    assert.ok(left > 0, `not heard in ${milliseconds} ms; heard: ${said.map(news => news.link).join(' ')}`);
    await new Promise<void>(resolve => {
      const timer = setTimeout(resolve, left);
      wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

test('a state, then patches of it', async () => {
  stream.start();
  await heard(news => news.link === 'live' && 'a' in news.state.pools);
  jupyter.send({ kind: 'patch', patch: { pools: { a: null, b: { snapshot: {}, owners: {} } } } });
  const { news } = await heard(each => 'b' in each.state.pools);
  assert.deepEqual(Object.keys(news.state.pools), ['b']);
  assert.equal(said[0].link, 'connecting');
});

test('a server that dies is down at once, and live soon after it is back', async () => {
  stream.start();
  const { number } = await heard(news => news.link === 'live');
  const killed = performance.now();
  await jupyter.down();
  const down = await heard(news => news.link === 'down', number);
  assert.ok(performance.now() - killed < 1000);
  assert.ok('a' in down.news.state.pools, 'the last state stays on the screen');
  await jupyter.up(port);
  await heard(news => news.link === 'live', down.number, 7000);
});

test('a connection with nobody at its other end is down after four seconds of silence', async () => {
  stream.start();
  const { number } = await heard(news => news.link === 'live');
  const greeted = performance.now();
  jupyter.answer = () => undefined; // hangs, as the sockets do: this server says nothing any more
  jupyter.greeting = null;
  const down = await heard(news => news.link === 'down', number);
  const seconds = (performance.now() - greeted) / 1000;
  assert.ok(seconds > 3 && seconds < 5, `${seconds} s`);
  jupyter.greeting = { kind: 'state', state: state('a') };
  await heard(news => news.link === 'live', down.number);
});

test('ticks keep a quiet connection alive', async () => {
  stream.start();
  const { number } = await heard(news => news.link === 'live');
  const ticking = setInterval(() => jupyter.send({ kind: 'tick' }), 1000);
  const quiet = heard(news => news.link !== 'live', number, 5000);
  await assert.rejects(quiet, /not heard/);
  clearInterval(ticking);
});

test('where a proxy lets no socket through, requests do: never shown as down', async () => {
  jupyter.takesSockets = false;
  stream.start();
  const { number } = await heard(news => news.link === 'polling');
  jupyter.answer = response => response.end(JSON.stringify(state('a', 'b')));
  await heard(news => 'b' in news.state.pools, number);
  assert.ok(said.every(news => news.link !== 'down'));
});

test('a server without the extension is told apart from one that is down', async () => {
  jupyter.takesSockets = false;
  jupyter.answer = response => response.writeHead(404).end();
  stream.start();
  const { news } = await heard(each => each.link === 'down');
  assert.equal(news.trouble, 'missing');
});

test('stopped means silent: no socket, nothing said, and the state is there for the next start', async () => {
  stream.start();
  await heard(news => news.link === 'live');
  stream.stop();
  const before = said.length;
  while (jupyter.listeners > 0) {
    await new Promise(resolve => setImmediate(resolve));
  }
  jupyter.send({ kind: 'patch', patch: {} });
  assert.equal(said.length, before);
  stream.start();
  assert.ok('a' in said[before].state.pools && said[before].link === 'connecting');
  await heard(news => news.link === 'live', before);
  assert.equal(jupyter.sockets, 2);
});
