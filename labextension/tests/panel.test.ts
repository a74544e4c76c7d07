// The widget's side of the panel: what it says of the age of what it shows, and how orders go and come back.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { afterEach, beforeEach, test } from 'node:test';
import { Window } from 'happy-dom';
import panel from '../src/panel';
import type { Snapshot, State } from '../src/state';
import { offer } from '../src/translation';
import { untranslated } from '../src/view/words';

const GOLDEN = JSON.parse(readFileSync('../tests/golden/snapshot.json', 'utf8')) as Snapshot;
const ADA = { label: 'ada.ipynb (812)', pid: 812, host: 'laptop', link: 'live', can_invite: true } as const;
const STATE: State = { version: 1, pools: { [GOLDEN.id]: { snapshot: GOLDEN, owners: { 'Client-ada': ADA } } } };

interface Order {
  id: string;
  verb: string;
  target: string;
}

/** Traits, as a front end holds them for a kernel. */
class Model {
  readonly sent: Order[] = [];
  private readonly heard = new Map<string, Set<(...values: never[]) => void>>();

  constructor(private readonly traits: Record<string, unknown>) {}

  get(name: string): unknown {
    return this.traits[name];
  }

  on(event: string, hear: (...values: never[]) => void): void {
    this.heard.set(event, (this.heard.get(event) ?? new Set()).add(hear));
  }

  off(event: string, hear: (...values: never[]) => void): void {
    this.heard.get(event)?.delete(hear);
  }

  send(content: unknown): void {
    this.sent.push(content as Order);
  }

  /** As it comes from the kernel. */
  say(event: string, ...values: unknown[]): void {
    this.heard.get(event)?.forEach(hear => hear(...(values as never[])));
  }

  get listeners(): number {
    return [...this.heard.values()].reduce((sum, each) => sum + each.size, 0);
  }
}

let model: Model;
let leave: () => void;

beforeEach(() => {
  const window = new Window();
  Object.assign(globalThis, { window, document: window.document });
  model = new Model({ state: STATE, view: 'pool', hides: '.still { display: none }' });
  leave = panel.render({ model, el: document.body });
});
afterEach(() => leave());

function link(): string {
  return document.querySelector('[role=status]')?.textContent ?? '';
}

/** What is drawn after what has been promised. */
async function drawn(): Promise<void> {
  await new Promise(resolve => setTimeout(resolve, 5));
}

test('what was saved says of when it is, with its date; what comes from the kernel is live', () => {
  assert.equal(link(), `as of ${new Date(1000 * GOLDEN.time).toLocaleString()}`);
  assert.ok(document.querySelector('.kn-view.kn-down'));
  assert.equal(document.querySelectorAll('.kn-device').length, 3, 'and is shown all the same');
  model.say('change:state');
  assert.equal(link(), 'live');
  assert.ok(!document.querySelector('.kn-view.kn-down'));
});

test('an order goes to the kernel, and its own answer comes back to the button', async () => {
  model.say('change:state');
  const stop = document.querySelector<HTMLButtonElement>('button[aria-label^="Stop the sweep lr"]');
  stop?.click();
  await drawn();
  assert.equal(stop?.textContent, 'Stopping…');
  stop?.click();
  await drawn();
  const [{ id, verb, target }, ...more] = model.sent;
  assert.deepEqual([verb, target, more.length], ['stop_sweep', 'Client-ada/lr', 0], 'asked once');
  model.say('msg:custom', { id: 'another', ok: false, text: 'no.' });
  model.say('msg:custom', { id, ok: true, text: 'lr stops.' });
  await drawn();
  assert.equal(stop?.textContent, 'Stop');
  const answer = document.querySelector('.kn-answer');
  assert.deepEqual([answer?.textContent, answer?.getAttribute('role')], ['lr stops.', 'status']);
});

test('what the kernel refuses is an alert', async () => {
  document.querySelector<HTMLButtonElement>('button[aria-label^="Close the model"]')?.click();
  await drawn();
  model.say('msg:custom', { id: model.sent[0].id, ok: false, text: 'it has ended already.' });
  await drawn();
  assert.equal(document.querySelector('[role=alert]')?.textContent, 'it has ended already.');
});

test('it leaves nothing behind', () => {
  leave();
  assert.equal(document.body.children.length, 0);
  assert.equal(model.listeners, 0);
});

test('an invite is copied only where the browser says so; else it stands there, selected', async () => {
  const ways: string[] = [];
  let lets = false;
  Object.assign(document, { execCommand: (way: string) => (ways.push(way), lets) });
  const button = [...document.querySelectorAll('button')].find(each => each.textContent === 'Copy invite');
  const invited = async () => {
    button?.click();
    await drawn();
    model.say('msg:custom', { id: model.sent.at(-1)?.id, ok: true, text: 'kalavai://AQ' });
    await drawn();
  };
  await invited();
  assert.deepEqual(ways, ['copy']);
  const shown = document.querySelector<HTMLInputElement>('.kn-invite');
  assert.equal(shown?.value, 'kalavai://AQ');
  for (let tries = 0; tries < 200 && document.activeElement !== shown; tries += 1) {
    await drawn();
  }
  assert.ok(document.activeElement === shown, 'ready to be copied');
  assert.ok(!document.body.textContent?.includes('Copied'));
  lets = true;
  await invited();
  assert.ok(document.body.textContent?.includes('Copied.'));
  assert.ok(!document.querySelector('.kn-invite'));
  assert.ok(!document.querySelector('body > textarea'), 'what was selected is gone');
});

test('where the extension is in the page, the panel speaks its language', () => {
  offer((text, ...values) => `<${text}|${values.join('|')}>`);
  const place = document.createElement('div');
  document.body.append(place);
  const away = panel.render({ model, el: place });
  assert.equal(place.querySelector('[role=status]')?.textContent, `<as of %1|${new Date(1000 * GOLDEN.time).toLocaleString()}>`);
  assert.ok([...place.querySelectorAll('button')].some(each => each.textContent === '<Copy invite|>'));
  away();
  offer(untranslated);
});
