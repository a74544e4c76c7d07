// Components that are drawn again only when what they show has changed, and whose errors cost nothing but themselves.
import { Component, ComponentChildren, createContext, FunctionComponent, JSX } from 'preact';
import { useContext } from 'preact/hooks';
import { Actions, Translate } from './types';
import { untranslated } from './words';

export interface Surroundings {
  actions: Actions;
  translate: Translate;
}

export const Around = createContext<Surroundings>({
  actions: { order: async () => ({ ok: false, text: '' }), copy: async () => undefined },
  translate: untranslated
});

export function useTranslate(): Translate {
  return useContext(Around).translate;
}

/** Draws again only when one of its properties is another object or value. */
export function pure<P extends object>(Inner: FunctionComponent<P>): FunctionComponent<P> {
  return class extends Component<P> {
    override shouldComponentUpdate(next: P): boolean {
      const [old, fresh] = [this.props as Record<string, unknown>, next as Record<string, unknown>];
      return Object.keys({ ...old, ...fresh }).some(key => old[key] !== fresh[key]);
    }
    override render(): JSX.Element {
      return <Inner {...this.props} />;
    }
  } as unknown as FunctionComponent<P>;
}

/** Shows nothing where what is in it cannot be drawn, such as a part of a snapshot of another version. */
export class Guard extends Component<{ children: ComponentChildren }, { failed?: ComponentChildren }> {
  override componentDidCatch(): void {
    this.setState({ failed: this.props.children });
  }
  override render(): ComponentChildren {
    // another snapshot may do better
    return this.state.failed === undefined || this.state.failed !== this.props.children ? this.props.children : null;
  }
}
