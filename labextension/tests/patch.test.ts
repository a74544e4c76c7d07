// The examples of RFC 7386, and what it says nothing of: what is not named stays the same object, and no key is special.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { applyPatch } from '../src/patch';

// appendix A: target, patch, result
const EXAMPLES: [unknown, unknown, unknown][] = [
  [{ a: 'b' }, { a: 'c' }, { a: 'c' }],
  [{ a: 'b' }, { b: 'c' }, { a: 'b', b: 'c' }],
  [{ a: 'b' }, { a: null }, {}],
  [{ a: 'b', b: 'c' }, { a: null }, { b: 'c' }],
  [{ a: ['b'] }, { a: 'c' }, { a: 'c' }],
  [{ a: 'c' }, { a: ['b'] }, { a: ['b'] }],
  [{ a: { b: 'c' } }, { a: { b: 'd', c: null } }, { a: { b: 'd' } }],
  [{ a: [{ b: 'c' }] }, { a: [1] }, { a: [1] }],
  [['a', 'b'], ['c', 'd'], ['c', 'd']],
  [{ a: 'b' }, ['c'], ['c']],
  [{ a: 'foo' }, null, null],
  [{ a: 'foo' }, 'bar', 'bar'],
  [{ e: null }, { a: 1 }, { e: null, a: 1 }],
  [[1, 2], { a: 'b', c: null }, { a: 'b' }],
  [{}, { a: { bb: { ccc: null } } }, { a: { bb: {} } }]
];

for (const [target, patch, result] of EXAMPLES) {
  test(`${JSON.stringify(target)} with ${JSON.stringify(patch)}`, () => {
    const before = structuredClone(target);
    assert.deepEqual(applyPatch(target, patch), result);
    assert.deepEqual(target, before, 'the target stays as it was');
  });
}

test('what a patch does not name stays the very same object', () => {
  const before = { devices: { a: { reading: { utilisation: 0.1 }, history: [1] }, b: { history: [2] } }, events: [3] };
  const after = applyPatch(before, { devices: { a: { reading: { utilisation: 0.2 } } } });
  assert.equal(after.devices.a.reading.utilisation, 0.2);
  assert.equal(after.devices.a.history, before.devices.a.history);
  assert.equal(after.devices.b, before.devices.b);
  assert.equal(after.events, before.events);
  assert.notEqual(after.devices, before.devices);
});

test('__proto__ and constructor are keys like any other', () => {
  const patch = JSON.parse('{"__proto__": {"polluted": 1}, "constructor": {"prototype": {"polluted": 1}}}');
  const after = applyPatch({}, patch) as Record<string, unknown>;
  assert.equal(({} as Record<string, unknown>).polluted, undefined);
  assert.equal(Object.getPrototypeOf(after), Object.prototype);
  assert.deepEqual(Object.keys(after), ['__proto__', 'constructor']);
  assert.deepEqual(JSON.parse(JSON.stringify(applyPatch(after, JSON.parse('{"__proto__": {"more": 2}}')))).constructor, {
    prototype: { polluted: 1 }
  });
  assert.deepEqual(Object.keys(applyPatch(after, JSON.parse('{"__proto__": null}'))), ['constructor']);
});
