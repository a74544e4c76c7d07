/** To the clipboard of the system, also over plain http, where browsers have no `navigator.clipboard`. Fails where not. */
export async function copy(text: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    if (!copySelected(text)) {
      throw new Error('the browser does not let anything be copied');
    }
  }
}

/** The old way, which works on what is selected; whether the browser says that it did it. */
function copySelected(text: string): boolean {
  const field = document.createElement('textarea');
  field.value = text;
  field.readOnly = true;
  field.style.cssText = 'left: 0; opacity: 0; position: fixed; top: 0';
  const before = document.activeElement;
  document.body.append(field);
  try {
    field.focus({ preventScroll: true });
    field.select();
    return document.execCommand('copy');
  } catch {
    return false;
  } finally {
    field.remove();
    (before as HTMLElement | null)?.focus?.();
  }
}
