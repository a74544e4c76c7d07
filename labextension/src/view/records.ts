// A snapshot of another version may have anything in any place: what is not as expected counts as not there.

/** Entries of an object of objects; nothing of all that is none. */
export function entries<T>(record: Record<string, T> | undefined): [string, T][] {
  return isObject(record) ? Object.entries(record ?? {}).filter(([, each]) => isObject(each)) : [];
}

/** What is an object in a list. */
export function items<T>(list: T[] | undefined): T[] {
  return Array.isArray(list) ? list.filter(isObject) : [];
}

function isObject(value: unknown): boolean {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
