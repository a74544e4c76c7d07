"""Who proposes the configs of a sweep, from which space."""
