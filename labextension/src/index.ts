// The plugins of JupyterLab and Notebook 7: only the application itself is required, all else is used where it is there.
import { ILayoutRestorer, JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette, Notification } from '@jupyterlab/apputils';
import { INotebookTracker } from '@jupyterlab/notebook';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator, TranslationBundle } from '@jupyterlab/translation';
import { copy } from './clipboard';
import { addCommands, OPEN } from './lab/commands';
import { insertCell } from './lab/notebook';
import { Server } from './lab/server';
import { follow, SETTINGS_ID, Settings } from './lab/settings';
import { Sidebar } from './lab/sidebar';
import { StatusLine } from './lab/status';
import { offer } from './translation';
import { Translate } from './view';

const RANK = 500;

function load(translator: ITranslator | null): { words: TranslationBundle; translate: Translate } {
  const words = (translator ?? nullTranslator).load('kalavai_nb');
  // "%%" is an escape to a TranslationBundle; in our texts it is the beginning of a magic
  return { words, translate: (text, ...values) => words.__(text.replace(/%%/g, '%%%%'), ...values) };
}

const sidebar: JupyterFrontEndPlugin<void> = {
  id: SETTINGS_ID,
  description: 'A sidebar with every GPU of every pool, live.',
  autoStart: true,
  optional: [ILayoutRestorer, ICommandPalette, ISettingRegistry, ITranslator, INotebookTracker],
  activate: (
    app: JupyterFrontEnd,
    restorer: ILayoutRestorer | null,
    palette: ICommandPalette | null,
    registry: ISettingRegistry | null,
    translator: ITranslator | null,
    tracker: INotebookTracker | null
  ) => {
    const { translate } = load(translator);
    offer(translate);
    const server = new Server(app.serviceManager.serverSettings, translate);
    const insert = tracker
      ? (source: string) => {
          if (!insertCell(tracker, source)) {
            const text = translate('Open a notebook first: the cell goes below its active one.');
            Notification.warning(text, { autoClose: 5000 }); // without a time it is not shown, only kept
          }
        }
      : undefined;
    const actions = { order: server.order.bind(server), copy, insertCell: insert };
    const widget = new Sidebar(server, actions, translate);
    let side: Settings['side'] = 'right';
    const place = () => {
      if (![...app.shell.widgets(side)].includes(widget)) {
        app.shell.add(widget, side, { rank: RANK, type: 'GPU pools' });
      }
    };
    place(); // before the settings have come: a layout is restored only for what is there when the application starts
    restorer?.add(widget, widget.id);
    addCommands(app, { sidebar: widget, server, translate, insert }, palette);
    void follow(registry, settings => {
      widget.pauseSeconds = settings.pauseSeconds;
      if (settings.side !== side) {
        side = settings.side;
        place();
        void app.restored.then(place); // JupyterLab 4.6 puts it back to where it was when the window was closed
      }
    });
  }
};

const status: JupyterFrontEndPlugin<void> = {
  id: 'kalavai_nb:status',
  description: 'Pools, GPUs and their mean utilisation in the status bar.',
  autoStart: true,
  optional: [IStatusBar, ISettingRegistry, ITranslator],
  activate: (
    app: JupyterFrontEnd,
    bar: IStatusBar | null,
    registry: ISettingRegistry | null,
    translator: ITranslator | null
  ) => {
    if (!bar) {
      return;
    }
    const { words, translate } = load(translator);
    const server = new Server(app.serviceManager.serverSettings, translate);
    let shown: { dispose(): void } | undefined;
    void follow(registry, settings => {
      if (settings.statusBar && !shown) {
        const item = new StatusLine(() => server.summary(), () => void app.commands.execute(OPEN), words);
        const place = bar.registerStatusItem('kalavai_nb:status', {
          item,
          align: 'left',
          rank: 50,
          isActive: () => item.active,
          activeStateChanged: item.activeChanged
        });
        shown = { dispose: () => (place.dispose(), item.dispose()) };
      } else if (!settings.statusBar && shown) {
        shown.dispose();
        shown = undefined;
      }
    });
  }
};

export default [sidebar, status];
