// What a person can set, always with a value: there may be no settings at all where the sidebar lives.
import { ISettingRegistry } from '@jupyterlab/settingregistry';

export const SETTINGS_ID = 'kalavai_nb:plugin';

export interface Settings {
  side: 'left' | 'right';
  statusBar: boolean;
  /** Numbers in the sidebar change no more often than this. */
  pauseSeconds: number;
}

export const DEFAULTS: Settings = { side: 'right', statusBar: true, pauseSeconds: 0 };

/** Calls `use` with the settings now and after each change of them; with the defaults where there is no registry. */
export async function follow(registry: ISettingRegistry | null, use: (settings: Settings) => void): Promise<void> {
  if (!registry) {
    use(DEFAULTS);
    return;
  }
  try {
    const loaded = await registry.load(SETTINGS_ID);
    const read = () => use({ ...DEFAULTS, ...(loaded.composite as Partial<Settings>) });
    loaded.changed.connect(read);
    read();
  } catch (error) {
    console.warn('kalavai_nb: the settings could not be loaded, so the defaults are used', error);
    use(DEFAULTS);
  }
}
