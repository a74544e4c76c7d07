// Buttons that ask a notebook for something: what they say while it is done, and what came of it.
import { JSX } from 'preact';
import { useContext, useEffect, useRef, useState } from 'preact/hooks';
import { Around } from './pure';
import { Answer, Verb } from './types';

const COPIED_MILLISECONDS = 4000;

export interface OrderProps {
  pool: string;
  owner: string;
  verb: Verb;
  target: string;
  text: string;
  meanwhile: string;
  label: string;
}

/** Asks once; its answer stands beside it. An error is said at once to those who do not see it. */
export function OrderButton({ pool, owner, verb, target, text, meanwhile, label }: OrderProps): JSX.Element {
  const { actions } = useContext(Around);
  const [asked, setAsked] = useState(false);
  const [answer, setAnswer] = useState<Answer | undefined>();
  const there = useMounted();
  const ask = async () => {
    setAsked(true);
    setAnswer(undefined);
    const came = await actions.order(pool, owner, verb, target).catch(error => ({ ok: false, text: String(error) }));
    if (there.current) {
      setAsked(false);
      setAnswer(came);
    }
  };
  return (
    <span class="kn-order">
      <button type="button" class="kn-button" aria-label={label} title={label} aria-disabled={asked} onClick={asked ? undefined : ask}>
        {asked ? meanwhile : text}
      </button>
      {answer && (
        <span class={`kn-answer${answer.ok ? '' : ' kn-bad'}`} role={answer.ok ? 'status' : 'alert'}>
          {answer.text}
        </span>
      )}
    </span>
  );
}

/** Asks for an invite and copies it; where the clipboard is not to be had, shows it to be copied by hand. */
export function InviteButton({ pool, owner }: { pool: string; owner: string }): JSX.Element {
  const { actions, translate } = useContext(Around);
  const [invite, setInvite] = useState('');
  const [said, setSaid] = useState<Answer | undefined>();
  const [asked, setAsked] = useState(false);
  const there = useMounted();
  const field = useRef<HTMLInputElement>(null);
  // ready to be copied, once: while numbers change, what is selected stays so
  useEffect(() => {
    field.current?.focus();
    field.current?.select();
  }, [invite]);
  const ask = async () => {
    setAsked(true);
    setSaid(undefined);
    setInvite('');
    const came = await actions.order(pool, owner, 'invite', '').catch(error => ({ ok: false, text: String(error) }));
    const copied = came.ok && (await actions.copy(came.text).then(() => true, () => false));
    if (!there.current) {
      return;
    }
    setAsked(false);
    if (!came.ok) {
      setSaid(came);
    } else if (copied) {
      setSaid({ ok: true, text: translate('Copied. Whoever has it can run code on every machine of the pool.') });
      setTimeout(() => there.current && setSaid(undefined), COPIED_MILLISECONDS);
    } else {
      setInvite(came.text);
    }
  };
  return (
    <span class="kn-order">
      <button type="button" class="kn-button" aria-disabled={asked} onClick={asked ? undefined : ask}>
        {asked ? translate('Copying…') : translate('Copy invite')}
      </button>
      {said && (
        <span class={`kn-answer${said.ok ? '' : ' kn-bad'}`} role={said.ok ? 'status' : 'alert'}>
          {said.text}
        </span>
      )}
      {invite && (
        <input
          class="kn-invite"
          readOnly
          value={invite}
          aria-label={translate('The invite, to be copied')}
          ref={field}
        />
      )}
    </span>
  );
}

/** Code to be run elsewhere, with a button that copies it; where that fails, it is selected to be copied by hand. */
export function CopyCode({ code }: { code: string }): JSX.Element {
  const { actions, translate } = useContext(Around);
  const [said, setSaid] = useState('');
  const there = useMounted();
  const shown = useRef<HTMLPreElement>(null);
  const copy = async () => {
    const done = await actions.copy(code).then(() => true, () => false);
    if (there.current) {
      setSaid(done ? translate('Copied') : translate('Copy by hand'));
      if (!done && shown.current) {
        getSelection()?.selectAllChildren(shown.current);
      }
      setTimeout(() => there.current && setSaid(''), COPIED_MILLISECONDS);
    }
  };
  return (
    <div class="kn-snippet">
      <pre class="kn-code" ref={shown}>
        {code}
      </pre>
      <button type="button" class="kn-button" aria-label={said || translate('Copy %1', code.split('\n')[0])} onClick={copy}>
        {said || translate('Copy')}
      </button>
    </div>
  );
}

/** Whether the component is still there: an answer may come when it is not. */
function useMounted(): { current: boolean } {
  const there = useRef(true);
  useEffect(() => {
    there.current = true;
    return () => {
      there.current = false;
    };
  }, []);
  return there;
}
