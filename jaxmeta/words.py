"""Words that people read: numbers agree with what they count."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number and what there are so many of; `plural` where an s does not make it.

    >>> counted(1, "inner step"), counted(60_000, "inner step"), counted(2, "minibatch", "minibatches")
    ('1 inner step', '60,000 inner steps', '2 minibatches')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
