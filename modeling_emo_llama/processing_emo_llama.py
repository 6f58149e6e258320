"""Pictures, faces and chat text in; the model's tensors out.

    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    messages = [{"role": "user", "content": [{"type": "image", "path": "face.jpg"}, {"type": "text", "text": "..."}]}]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")

    input_ids, attention_mask                    (batch, sequence)   `<image>` image_seq_length times a picture
    pixel_values                                 (pictures, 3, height, width)
    qformer_input_ids, qformer_attention_mask    (pictures, words)   the user's words to that picture's conversation
    face_boxes, face_landmarks                   (pictures, faces, 4), (pictures, faces, points, 2)   0..1 of the input
    face_embeddings, face_mask                   (pictures, faces, size), (pictures, faces)

Face priors are given (`faces=`, or a `faces` key beside the picture in a chat message) or else computed by the face
backend that the checkpoint names; both make equal tensors.
"""

import re

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import load_image, make_flat_list_of_images

from .face_analysis import Face, load_face_analyzer


class EmoLlamaProcessor(ProcessorMixin):
    r"""
    Args:
        image_processor: any still-picture processor that pads to a square (`do_pad`) or scales both axes on their own.
        tokenizer: the language model's tokenizer, with `image_token` as a special token.
        qformer_tokenizer: the tokenizer that the Q-Former reads the question with.
        image_seq_length (`int`): tokens a picture, `EmoLlamaConfig.image_seq_length`.
        num_landmarks (`int`), embedding_size (`int`), max_faces (`int`): the shape of the face priors, as in
            [`EmoLlamaFaceConfig`].
        face_backend (`str`): the analyzer that computes priors that were not given.
        user_turn (`str`): regular expression that finds the user's turns in a rendered chat: only they reach the
            Q-Former, never an answer.
        image_token (`str`, defaults to `"<image>"`).
        chat_template (`str`, *optional*).
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        qformer_tokenizer=None,
        image_seq_length: int = 13,
        num_landmarks: int = 68,
        embedding_size: int = 128,
        max_faces: int = 1,
        face_backend: str = "dlib",
        user_turn: str = r"<\|im_start\|>user\n(.*?)<\|im_end\|>",
        image_token: str = "<image>",
        chat_template=None,
        **kwargs,
    ):
        self.image_seq_length = image_seq_length
        self.num_landmarks = num_landmarks
        self.embedding_size = embedding_size
        self.max_faces = max_faces
        self.face_backend = face_backend
        self.user_turn = user_turn
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, qformer_tokenizer, chat_template=chat_template)

    def __call__(self, images=None, text=None, faces=None, question=None, use_faces=True, **kwargs) -> BatchFeature:
        r"""
        Args:
            images: a picture, a list of them, or a list a text (PIL, array, tensor, path, URL, base64, bytes).
            text (`str` or `list[str]`): the rendered chat, one `image_token` a picture.
            faces (`list[list[Face]]`, *optional*): the faces of each picture, in the order of the pictures; a face is
                a [`Face`] or a dict with its fields, in pixels of that picture. `None` for a picture: not looked yet.
            question (`str` or `list[str]`, *optional*): what the Q-Former reads, one a text. Default: the user's turns
                found in `text`.
            use_faces (`bool`, defaults to `True`): `False` answers without any face prior.

        Raises:
            ValueError: the number of pictures and of `image_token`s, or of pictures and of `faces`, differ.
            ImportError: priors must be computed and the face backend is not installed.
        """
        if images is None:
            return super().__call__(text=text, **kwargs)
        texts = [text] if isinstance(text, str) else list(text or [])
        pictures = [as_picture(image) for image in make_flat_list_of_images(self.image_processor.fetch_images(images))]
        places = [t.count(self.image_token) for t in texts]
        if texts and sum(places) != len(pictures):
            raise ValueError(f"the text has {sum(places)} {self.image_token} for {len(pictures)} pictures")
        if faces is not None and len(faces) != len(pictures):
            raise ValueError(f"faces of {len(faces)} pictures were given for {len(pictures)} pictures")

        inputs = super().__call__(images=pictures, text=texts or None, **kwargs)
        if not use_faces:
            faces = [[]] * len(pictures)
        inputs.update(self.face_tensors(pictures, faces or [None] * len(pictures)))
        if texts:
            questions = [question] if isinstance(question, str) else question or [self.question_of(t) for t in texts]
            inputs.update(self.question_tensors([q for q, n in zip(questions, places, strict=True) for _ in range(n)]))
        return inputs

    def question_of(self, text: str) -> str:
        """The user's words in a rendered chat, or all of a text that is none, without the picture placeholders."""
        turns = re.findall(self.user_turn, text, flags=re.DOTALL) or [text]
        return "\n".join(turn.replace(self.image_token, "").strip() for turn in turns)

    def question_tensors(self, questions: list[str]) -> dict[str, torch.Tensor]:
        encoded = self.qformer_tokenizer(
            questions, padding=True, padding_side="right", truncation=True, max_length=256, return_tensors="pt"
        )
        # `long`, because a question without words would be an empty float tensor
        return {f"qformer_{name}": encoded[name].long() for name in ("input_ids", "attention_mask")}

    def face_tensors(self, pictures: list[Image.Image], faces: list[list[Face | dict] | None]) -> dict:
        """Priors as tensors, padded to `max_faces`; those that are `None` are computed."""
        missing = [index for index, found in enumerate(faces) if found is None]
        if missing:
            analyzed = load_face_analyzer(self.face_backend)([pictures[index] for index in missing])
            faces = list(faces)
            for index, found in zip(missing, analyzed, strict=True):
                faces[index] = found
        shape = (len(pictures), self.max_faces)
        boxes = np.zeros((*shape, 4), np.float32)
        landmarks = np.zeros((*shape, self.num_landmarks, 2), np.float32)
        embeddings = np.zeros((*shape, self.embedding_size), np.float32)
        mask = np.zeros(shape, bool)
        for i, (picture, found) in enumerate(zip(pictures, faces, strict=True)):
            for j, face in enumerate(found[: self.max_faces]):
                face = face if isinstance(face, dict) else vars(face)
                points = np.concatenate([np.reshape(face["box"], (2, 2)), np.asarray(face["landmarks"])])
                points = self.to_input_frame(points, picture.size)
                size = 0 if face["embedding"] is None else len(face["embedding"])
                if points.shape[0] != 2 + self.num_landmarks or size != self.embedding_size:
                    raise ValueError(
                        f"a face has {points.shape[0] - 2} landmarks and an embedding of {size}, "
                        f"but this checkpoint was made for {self.num_landmarks} and {self.embedding_size}: "
                        f"compute the faces with the {self.face_backend!r} backend"
                    )
                boxes[i, j], landmarks[i, j] = points[:2].reshape(4), points[2:]
                embeddings[i, j], mask[i, j] = face["embedding"], True
        arrays = {"boxes": boxes, "landmarks": landmarks, "embeddings": embeddings, "mask": mask}
        return {f"face_{name}": torch.from_numpy(array) for name, array in arrays.items()}

    def to_input_frame(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Pixels of a picture of `size` (width, height) -> 0..1 of the square that the vision tower sees."""
        width, height = size
        if not self.image_processor.do_pad:
            return points / (width, height)
        side = max(width, height)
        return (points + ((side - width) // 2, (side - height) // 2)) / side

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * self.image_seq_length

    def _multimodal_inputs_from_conversations(self, conversations, *args, **kwargs):
        """Besides the pictures, take the `faces` that stand beside them in the messages."""
        *inputs, extra = super()._multimodal_inputs_from_conversations(conversations, *args, **kwargs)
        blocks = [
            block
            for conversation in conversations
            for message in conversation
            if not isinstance(message["content"], str)
            for block in message["content"]
            if block["type"] == "image"
        ]
        if any(block.get("faces") is not None for block in blocks):
            extra = {**extra, "faces": [block.get("faces") for block in blocks]}
        return *inputs, extra

    @property
    def model_input_names(self) -> list[str]:
        return [
            *super().model_input_names,
            *("qformer_input_ids", "qformer_attention_mask"),
            *("face_boxes", "face_landmarks", "face_embeddings", "face_mask"),
        ]


def as_picture(image) -> Image.Image:
    """A PIL picture of whatever Hugging Face users hand over as one."""
    if hasattr(image, "encoded"):  # a JPEG that the image processor opened; it is upright, and not decoded in vain
        return image
    if isinstance(image, (Image.Image, str)):
        return load_image(image).convert("RGB")
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.dtype != np.uint8:
        array = np.clip(array * (255 if array.max() <= 1 else 1), 0, 255).astype(np.uint8)
    return Image.fromarray(array.squeeze()).convert("RGB")


__all__ = ["EmoLlamaProcessor"]
