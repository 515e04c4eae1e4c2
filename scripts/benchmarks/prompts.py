"""Prompts of different lengths, for texts that go on."""

PROMPTS = (
    "The history of the lighthouse begins long before electricity, when fires were lit on hilltops to guide",
    "Here is a recipe for vegetable soup that serves four people. First, you will need to",
    "In computer science, a supervisor is a process that starts other processes and watches them. When one of them",
    "Dear Margaret, thank you for your letter of last Tuesday. The garden is finally beginning to",
    "The three states of matter that everybody learns about at school are solid, liquid and gas. A solid",
    "Once upon a time, in a village at the foot of a great mountain, there lived a clockmaker who",
    "To change the tyre of a bicycle, turn it upside down, open the quick release, and then",
    "The city council met on Monday to discuss the new bridge. After a debate of four hours, its members",
    "Photosynthesis is the process by which plants turn light into chemical energy. It takes place in",
    "My grandfather worked on the railway for forty years, and he used to say that a train",
    "A good unit test has three properties. It is fast, it is independent of all others, and",
    "The violin is the smallest and highest of the string instruments that are common in an orchestra. Its body",
    "During the winter of that year the river froze for the first time in a century, and the people",
    "When you visit the museum, begin on the second floor, where the oldest paintings are. In the first room",
    "There are several ways to learn a language. Some people read books, others listen to the radio, and",
    "The recipe of good coffee is simple: fresh beans, clean water, and a temperature of about ninety degrees. If",
)


def make_prompts(count: int) -> list[str]:
    """`count` prompts, no two the same."""
    rounds = range(-(-count // len(PROMPTS)))
    numbered = [prompt if number == 0 else f"{number}. {prompt}" for number in rounds for prompt in PROMPTS]
    return numbered[:count]
