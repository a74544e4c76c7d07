// JSON merge patch (RFC 7386). What a patch does not name stays the very same object, so that a view can skip it.

type Json = Record<string, unknown>;

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The target after the patch; the target itself is not changed. */
export function applyPatch<T>(target: T, patch: unknown): T {
  return merged(target, patch) as T;
}

function merged(target: unknown, patch: unknown): unknown {
  if (!isObject(patch)) {
    return patch;
  }
  const result: Json = isObject(target) ? { ...target } : {};
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) {
      delete result[key];
    } else {
      // assigned this way, a key like __proto__ is a key and nothing else
      const before = Object.prototype.hasOwnProperty.call(result, key) ? result[key] : undefined;
      Object.defineProperty(result, key, {
        value: merged(before, value),
        enumerable: true,
        configurable: true,
        writable: true
      });
    }
  }
  return result;
}
