"""The lessons as a course: exercises that say what is wrong, lessons run by name, notebooks for a
class and their points.
"""

from prefkit.course.exercises import run_lesson, tried
from prefkit.course.grading import grade, grade_class
from prefkit.course.make import exercises_of, make_course, solved_lessons

__all__ = [
    "exercises_of",
    "grade",
    "grade_class",
    "make_course",
    "run_lesson",
    "solved_lessons",
    "tried",
]
