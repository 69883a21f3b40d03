"""The words of the generated questions: phrasings by kind, fixed answers, names of places.

Used by `questions.py`. `{shape}`, `{color}`, `{thing}`, `{group}` and `{place}` are filled in there.
"""

from __future__ import annotations

NUMBER_WORDS = ("Zero", "One", "Two", "Three", "Four")
PLACES = (
    *("at the top left", "at the top", "at the top right"),
    *("on the left", "in the center", "on the right"),
    *("at the bottom left", "at the bottom", "at the bottom right"),
)
"""How a sentence says each of CELLS."""

COLOR = (
    "What color is the {shape}?",
    "What colour is the {shape}?",
    "What is the color of the {shape}?",
    "Which color does the {shape} have?",
    "Tell me the color of the {shape}.",
    "The {shape} is which color?",
)
SHAPE = (
    "Which shape is {color}?",
    "What shape is the {color} object?",
    "What is the {color} shape?",
    "What is the shape of the {color} object?",
    "What is the {color} thing?",
    "Name the {color} shape.",
)
COUNT_ALL = (
    "How many shapes are there?",
    "How many shapes are in the picture?",
    "How many shapes do you see?",
    "Count the shapes.",
    "What is the number of shapes?",
)
COUNT_OBJECTS = (
    "How many objects are there?",
    "How many objects are in the picture?",
    "How many things do you see?",
    "Count the objects.",
)
COUNT_SOME = (
    "How many {group} are there?",
    "How many {group} are in the picture?",
    "How many {group} do you see?",
    "How many {group} can you see?",
    "Count the {group}.",
)
POSITION = (
    "Where is the {thing}?",
    "Where is the {thing} in the picture?",
    "What is the position of the {thing}?",
    "In which part of the picture is the {thing}?",
    "Where do you see the {thing}?",
    "Where can I find the {thing}?",
)
PRESENCE = (
    "Is there {thing}?",
    "Is there {thing} in the picture?",
    "Is there {thing} in the image?",
    "Do you see {thing}?",
    "Can you see {thing}?",
    "Does the picture show {thing}?",
)
WHAT_AT = (
    "What is {place}?",
    "What do you see {place}?",
    "What is shown {place}?",
    "What can you see {place}?",
)
NUMBER = (
    "What number is shown?",
    "Which number is shown?",
    "What number is in the picture?",
    "What number is written in the picture?",
    "What number do you see?",
    "Read the number.",
    "What does the number say?",
)
ICON = (
    "Which icon is shown?",
    "What icon is in the picture?",
    "What does the icon show?",
    "What is the icon?",
    "Name the icon.",
)
ANIMAL = ("What animal is this?", "What animal is shown?", "Which animal do you see?")
ANIMALS = (
    *("cat", "dog", "fish", "bird", "butterfly", "frog", "bee", "crab", "ladybug"),
    *("lion", "octopus", "panda", "penguin", "pig", "rabbit", "turtle", "whale"),
)
DESCRIBE = (
    "Describe the picture.",
    "Describe the image.",
    "Describe this picture.",
    "What is in the picture?",
    "What is in the image?",
    "What do you see?",
    "What is shown in the picture?",
    "What can you see in this picture?",
    "Tell me about the picture.",
)
WHAT_IS_THIS = ("What is this?", "What is that?", "What's this?")
GREETING_ANSWER = "Hello! Ask me about the picture."
IDENTITY_ANSWER = (
    "I am InternVL-Chat-Tiny, a very small model. I know colored shapes, numbers and a few icons."
)
UNKNOWN_ANSWER = "I do not know. I only know colored shapes, numbers and a few icons."
NO_PICTURE_ANSWER = "I see no picture. Please give me one."
GREETINGS = (
    "Hello",
    "Hello!",
    "Hi",
    "Hi!",
    "Hi there!",
    "Hey",
    "Good morning!",
    "Good evening!",
    "Hello, how are you?",
)
IDENTITY = (
    "Who are you?",
    "What are you?",
    "What is your name?",
    "What can you do?",
    "Introduce yourself.",
    "Which model are you?",
    "Help",
)
UNKNOWN = (
    "Who painted this?",
    "What is the capital of France?",
    "Write a poem.",
    "What is the weather like today?",
    "Who is the person in the picture?",
    "What time is it?",
    "What is the man doing?",
    "Why is the sky blue?",
    "Tell me a joke.",
    "What does the sign say?",
    "What language is this?",
    "Where was this photo taken?",
    "How old is she?",
    "Translate this into German.",
    "What brand is the car?",
    "What is 12 times 7?",
    "Who won the game?",
    "What is the woman wearing?",
    "How do I cook rice?",
    "What is the meaning of life?",
    "Explain the chart.",
    "Is the person happy?",
    "Which city is this?",
    "Write a Python function.",
)
