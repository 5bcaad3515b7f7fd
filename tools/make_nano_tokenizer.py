"""Make the tokenizer of the nano backbone: a byte-level BPE trained on generated robot instructions.

Run `python tools/make_nano_tokenizer.py` from the root of the repository; it rewrites
`src/anyvla/backbones/nano/assets/`. Checkpoints carry their own copy, so old ones keep working.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

FOLDER = Path("src/anyvla/backbones/nano/assets")
SPECIAL = {"pad": "<pad>", "bos": "<bos>", "eos": "<eos>", "image": "<image>", "query": "<query>"}
VOCABULARY = 1536

VERBS = """open|close|push|pull|pick up|grasp|grab|lift|put|place|move|slide|press|push down|turn|rotate|twist|turn on|
turn off|switch on|switch off|unstack|stack|insert|unplug|plug|hammer|reach|reach for|touch|go to|bring|take|take out|
fold|unfold|wipe|sweep|pour|hang|throw away|drop|release|hold|hand over|shut|flip|lock|unlock|assemble|disassemble|
toss|knock over|align|stop|wait|return|find|look at|point at|clean|load|unload|shake|stir|cut|tidy up|pack|tighten|
loosen|set|draw|pick|remove|tip|tilt|squeeze|screw|unscrew|drag|lay|raise|lower|nudge|carry|arrange""".replace("\n", "")
OBJECTS = """drawer|window|door|button|lever|handle|faucet|tap|peg|hole|puck|ball|block|cube|mug|cup|bowl|plate|dish|
box|bin|basket|shelf|stick|nail|hammer|wall|coffee machine|coffee button|dial|plug|socket|wrench|ring|basketball|hoop|
goal|lid|pot|pan|stove|burner|oven|microwave|fridge|cabinet|switch|light|lamp|led|light bulb|slider|slide|towel|cloth|
spoon|fork|knife|spatula|carrot|eggplant|apple|orange|banana|lemon|tomato|potato|onion|egg|bread|can|coke can|pepsi can|
bottle|water bottle|wine bottle|wine rack|sponge|brush|pen|marker|book|caddy|moka pot|frying pan|cream cheese|butter|
butter box|ketchup|alphabet soup|tomato sauce|milk|orange juice|chocolate pudding|salad dressing|bbq sauce|cookie box|
ramekin|tray|toy|robot|gripper|arm|table|sink|rag|napkin|tape|rope|cable|screw|gear|lock|key|phone|remote|chair|desk|
top drawer|middle drawer|bottom drawer|cupboard|rack|stove knob|knob|cover|container|jar|glass|paper|trash can|
chips bag|sticker|tower|stack|sliding door|soccer ball|hand|thing|object|item""".replace("\n", "")
COLORS = "red|green|blue|yellow|pink|purple|orange|black|white|gray|gray|brown|silver|wooden|metal|plastic|glass"
ADJECTIVES = "small|big|large|left|right|top|bottom|middle|near|far|front|back|upper|lower|other|same|empty|full|round"
PLACES = """on the table|into the drawer|in the drawer|on the plate|in the basket|into the box|on the shelf|
into the bin|
next to the bowl|to the left|to the right|to the left of the mug|to the right of the plate|behind the wall|
in front of the stove|on top of the cabinet|under the table|between the plate and the cup|onto the red block|
into the hole|from the table|out of the box|off the shelf|upright|all the way|half way|slowly|carefully|
gently|quickly|from above|from the side|topdown|sideways|clockwise|counterclockwise|by 90 degrees|
with the gripper|with your left hand|back to where it was|towards the robot|away from the wall|and close it|
and put it in the bowl|at the same time|without touching the wall|again|first|then|please|now|up|down|forward|
backward|inside|outside|over there|here""".replace("\n", "")
SENTENCES = """What action should the robot take to {0}?|In: What action should the robot take to {0}?\nOut:|please {0}|
Please {0}.|can you {0}?|could you {0}|the robot should {0}|robot, {0}!|your task is to {0}|{0}, then stop|try to {0}|
I want you to {0}.|you need to {0}|use the arm to {0}|let's {0}|make sure to {0}|task: {0}; do not drop it|{0}|{0}|{0}.|
{0}""".replace("\n", "")
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve 0 1 2 3 4 5 6 7 8 9 10 12 20 30 45 90 180"
)


def corpus() -> Iterator[str]:
    """Yield every verb with every object, cycling through modifiers, places and phrasings."""
    modifiers = itertools.cycle(["the ", "a ", *(f"the {w} " for w in f"{COLORS}|{ADJECTIVES}".split("|"))])
    places, sentences = itertools.cycle(PLACES.split("|")), itertools.cycle(SENTENCES.split("|"))
    numbers = itertools.cycle(NUMBERS.split())
    for i, (verb, thing) in enumerate(itertools.product(VERBS.split("|"), OBJECTS.split("|"))):
        phrase = f"{verb} {next(modifiers)}{thing}" + (f" {next(places)}" if i % 3 == 0 else "")
        if i % 11 == 0:
            phrase = f"{verb} {next(numbers)} {thing}s"
        sentence = next(sentences).format(phrase)
        yield sentence[0].upper() + sentence[1:] if i % 5 == 0 else sentence


def main() -> None:
    """Train the tokenizer and write it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=3,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=SPECIAL["pad"],
        bos_token=SPECIAL["bos"],
        eos_token=SPECIAL["eos"],
        extra_special_tokens={"image_token": SPECIAL["image"], "query_token": SPECIAL["query"]},
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    tokenizer.save_pretrained(FOLDER)
    print(f"{len(tokenizer)} tokens in {FOLDER}: {(FOLDER / 'tokenizer.json').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
