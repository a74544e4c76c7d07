// The snapshot that pytest compares with what Python makes: all that is in it is seen, in words that are true.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { afterEach, beforeEach, test } from 'node:test';
import { Window } from 'happy-dom';
import { options } from 'preact';
import type { Owner, Snapshot, State } from '../src/state';
import { mount, Verb, View } from '../src/view';
import { totals, untranslated, use } from '../src/view/words';

const GOLDEN = JSON.parse(readFileSync('../tests/golden/snapshot.json', 'utf8')) as Snapshot;
const LIMITS = '80 % of memory; 22:00-08:00; when idle; at most 250 W';
const ADA: Owner = { label: 'ada.ipynb (812)', pid: 812, host: 'laptop', link: 'live', can_invite: true };

function state(snapshot: Partial<Snapshot> = GOLDEN, ada: Partial<Owner> = {}): State {
  return { version: 1, pools: { [GOLDEN.id]: { snapshot, owners: { 'Client-ada': { ...ADA, ...ada } } } } };
}

// what changes by itself, such as what is unfolded, is drawn at once
options.debounceRendering = draw => draw();

let view: View;
let ordered: [string, string, Verb, string][];

beforeEach(() => {
  const window = new Window();
  Object.assign(globalThis, { window, document: window.document, KeyboardEvent: window.KeyboardEvent });
  ordered = [];
  view = mount(document.body, {
    actions: {
      order: async (...order) => {
        ordered.push(order);
        return { ok: true, text: 'done.' };
      },
      copy: async () => undefined
    }
  });
});
afterEach(() => view.dispose());

function texts(selector: string): string[] {
  return [...document.querySelectorAll(selector)].map(each => (each.textContent ?? '').replace(/\s+/g, ' ').trim());
}

/** What could not be drawn is drawn again without it, a moment later. */
async function drawn(): Promise<void> {
  await new Promise(resolve => setTimeout(resolve, 5));
}

function button(label: string): HTMLButtonElement {
  const found = document.querySelector<HTMLButtonElement>(`button[aria-label="${label}"]`);
  assert.ok(found, `${label}; there is: ${texts('button')}`);
  return found;
}

test('totals and uses', () => {
  assert.deepEqual(totals(state()), { pools: 1, devices: 3, utilisation: 0.71 });
  const owners = { 'Client-ada': ADA };
  const uses = Object.values(GOLDEN.leases).map(lease => use(lease, GOLDEN.time, owners, untranslated));
  assert.deepEqual(uses, ['you: sweep lr', 'bob.ipynb (9): session, idle 7 min']);
});

test('each device with its owner and its numbers, n/a where there are none', () => {
  view.update(state(), 'live');
  assert.deepEqual(texts('.kn-totals'), ['1 pool · 3 devices · 71 %']);
  assert.deepEqual(texts('.kn-device .kn-name'), ['cuda:0 RTX 4090', 'cuda:1 A100 MIG 1g.10gb', 'cpu:0 CPU stand-in']);
  assert.deepEqual(texts('.kn-uses'), ['you: sweep lr', 'its owner takes it back: 40 s left', 'no news for 12 s']);
  assert.deepEqual(texts('.kn-limits'), [`lent: ${LIMITS}`]);
  assert.deepEqual(texts('.kn-meter-use'), ['71 %', 'n/a', 'n/a']);
  assert.deepEqual(texts('.kn-meter-memory'), ['12/24 GiB', '1.0/10 GiB', 'n/a/4 GiB']);
  assert.deepEqual(texts('.kn-heat'), ['66 °C 288/450 W', '', '']);
  assert.deepEqual(texts('.kn-device .kn-remark'), ['MIG: the driver gives no utilisation of an instance']);
  assert.deepEqual(texts('.kn-alert li'), ['⚠ no news from laptop cpu:0 for 12 s']);
  const title = document.querySelector('.kn-device')?.getAttribute('title');
  assert.equal(title, 'gpu-box-1 cuda:0\nNVIDIA GeForce RTX 4090\nlent: ' + LIMITS + '\nyou: sweep lr');
});

test('what runs and waits, with buttons only for what is ours', async () => {
  view.update(state(), 'live');
  const items = texts('.kn-item').join('\n');
  for (const words of [
    'train(model)bob.ipynb (9) · 2 ranks · 5 s',
    '5/11',
    'you · about 43 s left',
    '3 complete · 1 running · 5 waiting · 2 failed',
    'best: accuracy=0.97 with lr=0.01',
    '2 × ValueError: too large',
    'you · running',
    '20.5 tokens/s · 2 requests',
    'layers 0 to 11 on gpu-box-1 cuda:0',
    'spare: laptop cpu:0',
    '1st in the queue; 1 of 2 devices free'
  ]) {
    assert.ok(items.includes(words), `${words} in\n${items}`);
  }
  assert.deepEqual(texts('button.kn-button'), ['Stop', 'Close', 'Copy invite']);
  button('Stop the sweep lr; what is done is kept').click();
  button('Close the model SmolLM2').click();
  assert.deepEqual(ordered, [
    [GOLDEN.id, 'Client-ada', 'stop_sweep', 'Client-ada/lr'],
    [GOLDEN.id, 'Client-ada', 'close_model', 'Client-ada/1']
  ]);
});

test('events come newest first, with how long ago that was', () => {
  view.update(state(), 'live');
  assert.deepEqual(texts('.kn-events li'), ['just now laptop cpu:0 is silent', '3 min ago laptop cpu:0 joined']);
});

test('all there is to say of a device is said where its name is pressed, and stays while numbers change', () => {
  view.update(state(), 'live');
  const name = document.querySelector<HTMLButtonElement>('.kn-more');
  name?.click();
  assert.equal(name?.getAttribute('aria-expanded'), 'true');
  const lasting = ['gpu-box-1 cuda:0', 'NVIDIA GeForce RTX 4090', `lent: ${LIMITS}`, 'you: sweep lr'];
  const facts = [...lasting, '66 °C · 288/450 W', '4711 python 11 GiB', '1 X'];
  assert.deepEqual(texts('.kn-details li'), facts);
  view.update(state({ ...GOLDEN, time: GOLDEN.time + 1 }), 'live');
  assert.deepEqual(texts('.kn-details li'), facts);
});

test('Tab comes to one device of each machine, arrows go on from there', () => {
  view.update(state(), 'live');
  const names = [...document.querySelectorAll<HTMLButtonElement>('.kn-more')];
  const stops = () => names.map(each => each.tabIndex);
  assert.deepEqual(stops(), [0, -1, 0]);
  names[0].focus();
  const press = (key: string) => document.activeElement?.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
  press('ArrowDown');
  assert.equal(document.activeElement, names[1]);
  assert.deepEqual(stops(), [-1, 0, 0]);
  press('ArrowDown');
  assert.equal(document.activeElement, names[1], 'the next machine is another list');
  press('Home');
  assert.equal(document.activeElement, names[0]);
  press('End');
  press('ArrowUp');
  assert.equal(document.activeElement, names[0]);
});

test('of many alerts the first are seen at once, and the rest where they are asked for', () => {
  const alerts = (count: number) =>
    Object.fromEntries(Array.from({ length: count }, (_, n) => [`lost/${n}`, { kind: 'lost', text: `cuda:${n} is lost` }]));
  view.update(state({ ...GOLDEN, alerts: alerts(6) }), 'live');
  assert.equal(texts('.kn-alert > ul > li').length, 6);
  assert.deepEqual(texts('.kn-alert summary'), [], 'a line more is not worth a press');
  view.update(state({ ...GOLDEN, alerts: alerts(9) }), 'live');
  assert.equal(texts('.kn-alert > ul > li').length, 5);
  assert.deepEqual(texts('.kn-alert summary'), ['4 more']);
  assert.equal(texts('.kn-alert details li').length, 4);
});

test('a pool that nobody vouches for is told apart, and cannot invite', () => {
  view.update(state(GOLDEN, { link: 'silent', silent_seconds: 12 }), 'live');
  assert.deepEqual(texts('.kn-honest li'), ['⚠ No news for 12 s from ada.ipynb (812)']);
  assert.equal(document.querySelectorAll('.kn-pool.kn-old').length, 1);
  assert.ok(!texts('button').includes('Copy invite'));
  view.update(state(), 'live');
  assert.equal(document.querySelectorAll('.kn-honest, .kn-pool.kn-old').length, 0);
});

test('a snapshot of another version costs what is other in it, and no more', async () => {
  const other = { ...GOLDEN, sweeps: { x: null }, events: 7, alerts: { a: null } } as unknown as Snapshot;
  view.update(state(other), 'live');
  await drawn();
  assert.equal(texts('.kn-device').length, 3);
  view.update(state(), 'live');
  await drawn();
  assert.ok(texts('.kn-item').join().includes('accuracy=0.97'), 'the next one heals it');
  for (const part of Object.keys(GOLDEN) as (keyof Snapshot)[]) {
    const { [part]: _, ...rest } = GOLDEN;
    view.update(state(rest), 'live');
    await drawn();
    assert.equal(document.querySelectorAll('.kn-pool').length, 1, `without ${part}`);
  }
});
