"""Pictures, clips, faces and chat text in; the model's tensors out.

    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    messages = [{"role": "user", "content": [{"type": "image", "path": "face.jpg"}, {"type": "text", "text": "..."}]}]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")

    input_ids, attention_mask                    (batch, sequence)   `<image>` image_seq_length times a still,
                                                                     `<video>` frame_seq_length times a frame of a clip
    pixel_values                                 (stills, 3, height, width)
    pixel_values_videos                          (frames, 3, height, width)      of all clips, one after the other
    qformer_input_ids, qformer_attention_mask    (pictures, words)   the user's words to that picture's conversation
    face_boxes, face_landmarks                   (pictures, faces, 4), (pictures, faces, points, 2)   0..1 of the input
    face_embeddings, face_mask                   (pictures, faces, size), (pictures, faces)

A row of the last six is a picture: first all stills, then all frames, each in the order of the conversations.

A clip is `{"type": "video", "path": "clip.mp4"}`, of which `num_frames` frames are taken, or `"video"`: a list of
frames or an array of them, which are all taken. Neither torchvision nor torchcodec is needed.

Face priors are given (`faces` beside the picture in a chat message, for a clip a list a frame; or `faces=`,
`video_faces=`) or else computed by the face backend that the checkpoint names; both make equal tensors. `attributes`
beside the picture ({"age": "20-39", "gender": None, "race": None}) are spoken of after it (`attribute_prompt.py`).
They are no part of the question that the Q-Former reads: as in LLaMA-VID, it is guided by the user's words.
"""

import os
import re

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import ImageInput, load_image, make_flat_list_of_images
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, VideosKwargs
from transformers.video_utils import VideoInput

from .attribute_prompt import attribute_sentence, known_attributes
from .face_analysis import Face, load_face_analyzer
from .video_frames import read_frames

Faces = list[Face | dict]  # of one picture, the largest first


class EmoLlamaImagesKwargs(ImagesKwargs, total=False):
    sentences: list[str]


class EmoLlamaVideosKwargs(VideosKwargs, total=False):
    sentences: list[str]


class EmoLlamaProcessorKwargs(ProcessingKwargs, total=False):
    """What stands after each picture and each clip in the text travels beside it."""

    images_kwargs: EmoLlamaImagesKwargs
    videos_kwargs: EmoLlamaVideosKwargs


class EmoLlamaProcessor(ProcessorMixin):
    r"""
    Args:
        image_processor: any still-picture processor that pads to a square (`do_pad`) or scales both axes on their own.
        tokenizer: the language model's tokenizer, with `image_token` as a special token.
        qformer_tokenizer: the tokenizer that the Q-Former reads the question with.
        image_seq_length (`int`), frame_seq_length (`int`): tokens a still and a frame of a clip, by the rule of
            `EmoLlamaConfig`.
        num_frames (`int`, defaults to 8): frames taken of a clip that is given by its path.
        num_landmarks (`int`), embedding_size (`int`), max_faces (`int`): the shape of the face priors, as in
            [`EmoLlamaFaceConfig`].
        face_backend (`str`): the analyzer of priors that were not given, by its name for [`load_face_analyzer`].
        face_settings (`dict`, *optional*): how it does, fields of [`FaceSettings`].
        user_turn (`str`): regular expression that finds the user's turns in a rendered chat: only they reach the
            Q-Former, never an answer.
        use_attributes (`bool`, defaults to `True`): whether the model is told the age, gender and race that are known,
            as in the published model; `False` is the ablation.
        read_faces (`bool`, defaults to `True`): whether the model gets face priors; `False` answers without any.
        image_token (`str`, defaults to `"<image>"`), video_token (`str`, defaults to `"<video>"`).
        chat_template (`str`, *optional*).
    """

    valid_processor_kwargs = EmoLlamaProcessorKwargs

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        qformer_tokenizer=None,
        image_seq_length: int = 13,
        frame_seq_length: int = 10,
        num_frames: int = 8,
        num_landmarks: int = 68,
        embedding_size: int = 128,
        max_faces: int = 1,
        face_backend: str = "dlib",
        face_settings: dict | None = None,
        user_turn: str = r"<\|im_start\|>user\n(.*?)<\|im_end\|>",
        use_attributes: bool = True,
        read_faces: bool = True,
        image_token: str = "<image>",
        video_token: str = "<video>",
        chat_template=None,
        **kwargs,
    ):
        self.image_seq_length = image_seq_length
        self.frame_seq_length = frame_seq_length
        self.num_frames = num_frames
        self.num_landmarks = num_landmarks
        self.embedding_size = embedding_size
        self.max_faces = max_faces
        self.face_backend = face_backend
        self.face_settings = face_settings or {}
        self.user_turn = user_turn
        self.use_attributes = use_attributes
        self.read_faces = read_faces
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self.video_token = video_token
        self.video_token_id = tokenizer.get_vocab().get(video_token)  # checkpoints of old have none
        super().__init__(image_processor, tokenizer, qformer_tokenizer, chat_template=chat_template)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        videos: VideoInput | None = None,
        faces=None,
        video_faces=None,
        attributes=None,
        video_attributes=None,
        question=None,
        use_faces=None,
        **kwargs,
    ) -> BatchFeature:
        r"""
        Args:
            images: a picture, a list of them, or a list a text (PIL, array, tensor, path, URL, base64, bytes).
            text (`str` or `list[str]`): the rendered chat, one `image_token` a picture, one `video_token` a clip.
            videos: a clip, a list of them, or a list a text. A clip is the path of a video file or of a folder of
                frames, an array or a tensor of frames, or a list of frames (PIL, array, tensor, bytes).
            faces (`list[Faces]`, *optional*): the faces of each picture, in the order of the pictures; a face is a
                [`Face`] or a dict with its fields, in pixels of that picture. `None` for a picture: not looked yet.
            video_faces (`list[list[Faces]]`, *optional*): a list a clip of the faces of each frame, `None` as above.
            attributes, video_attributes (`list[dict]`, *optional*): age, gender and race of the person in each picture
                and in each clip, null where unknown. They win over what the face backend says.
            question (`str` or `list[str]`, *optional*): what the Q-Former reads, one a text. Default: the user's turns
                found in `text`.
            use_faces (`bool`, *optional*): `False` answers without any face prior. Default: what the processor says,
                unless the checkpoint was made without them (`max_faces=0`).
            num_frames (`int`, *optional*): frames taken of a clip that is given by its path.

        Raises:
            ValueError: the numbers differ of pictures and `image_token`s, of clips and `video_token`s, or of pictures,
                clips or frames and what was given for each of them.
            OSError: a clip cannot be read.
            ImportError: priors must be computed and the face backend is not installed.
        """
        if images is None and videos is None:
            return super().__call__(text=text, **kwargs)
        texts = [text] if isinstance(text, str) else list(text or [])
        pictures = [] if images is None else self.as_pictures(images)
        num_frames = kwargs.get("num_frames") or self.num_frames
        clips = [] if videos is None else self.as_clips(videos, num_frames)
        self.check_places(texts, pictures, clips)
        media = [[picture] for picture in pictures] + clips  # all as lists of frames

        found = [one if one is None else [one] for one in one_each(faces, pictures, "faces", "pictures")]
        found += one_each(video_faces, clips, "faces", "clips")
        if use_faces is False or (use_faces is None and not (self.read_faces and self.max_faces)):
            found = [[[]] * len(frames) for frames in media]
        found = self.find_faces(media, found)
        known = one_each(attributes, pictures, "attributes", "pictures")
        known += one_each(video_attributes, clips, "attributes", "clips")
        said = [self.sentence(own, seen) for own, seen in zip(known, found, strict=True)]
        for kind, own in {"images_kwargs": said[: len(pictures)], "videos_kwargs": said[len(pictures) :]}.items():
            kwargs[kind] = {**kwargs.get(kind, {}), "sentences": own}

        inputs = super().__call__(images=pictures or None, text=texts or None, videos=clips or None, **kwargs)
        inputs.update(self.face_tensors(sum(media, []), sum(found, [])))
        if texts:
            questions = [question] if isinstance(question, str) else question or [self.question_of(t) for t in texts]
            asked = []  # of each medium
            for token in (self.image_token, self.video_token):
                asked += [q for q, t in zip(questions, texts, strict=True) for _ in range(t.count(token))]
            inputs.update(self.question_tensors([q for q, frames in zip(asked, media, strict=True) for _ in frames]))
        return inputs

    def check_places(self, texts: list[str], pictures: list, clips: list) -> None:
        for token, media, name in ((self.image_token, pictures, "pictures"), (self.video_token, clips, "clips")):
            places = sum(text.count(token) for text in texts)
            if texts and places != len(media):
                raise ValueError(f"the text has {places} {token} for {len(media)} {name}")

    def as_pictures(self, images) -> list[Image.Image]:
        return [as_picture(image) for image in make_flat_list_of_images(self.image_processor.fetch_images(images))]

    def as_clips(self, videos, num_frames: int) -> list[list[Image.Image]]:
        """The frames of every clip in `videos`, one clip or lists of them."""
        if isinstance(videos, (str, os.PathLike)):
            return [self.as_pictures(list(read_frames(videos, num_frames).pixels))]
        if len(videos) and (isinstance(videos[0], (Image.Image, bytes)) or getattr(videos[0], "ndim", 0) == 3):
            return [self.as_pictures(list(videos))]
        return [clip for one in videos for clip in self.as_clips(one, num_frames)]

    def find_faces(self, media: list[list[Image.Image]], given: list[list[Faces | None] | None]) -> list[list[Faces]]:
        """The faces, as dicts, of each frame of each medium; those that are `None` are computed."""
        for frames, found in zip(media, given, strict=True):
            if found is not None and len(found) != len(frames):
                raise ValueError(f"faces of {len(found)} frames were given for a clip of {len(frames)}")
        faces = [one for frames, found in zip(media, given, strict=True) for one in found or [None] * len(frames)]
        missing = [index for index, found in enumerate(faces) if found is None]
        if missing:
            pictures = sum(media, [])
            analyze = load_face_analyzer(self.face_backend, **self.face_settings)
            for index, found in zip(missing, analyze([pictures[index] for index in missing]), strict=True):
                faces[index] = found
        faces = iter([[face if isinstance(face, dict) else vars(face) for face in found] for found in faces])
        return [[next(faces) for _ in frames] for frames in media]

    def sentence(self, attributes: dict | None, faces: list[Faces]) -> str:
        """What is said of the person after a picture or a clip."""
        said = attribute_sentence(known_attributes(attributes, faces)) if self.use_attributes else ""
        return said and f"\n{said}"

    def question_of(self, text: str) -> str:
        """The user's words in a rendered chat, or all of a text that is none, without the picture placeholders."""
        turns = re.findall(self.user_turn, text, flags=re.DOTALL) or [text]
        marks = f"{re.escape(self.image_token)}|{re.escape(self.video_token)}"
        return "\n".join(re.sub(marks, "", turn).strip() for turn in turns)

    def question_tensors(self, questions: list[str]) -> dict[str, torch.Tensor]:
        encoded = self.qformer_tokenizer(
            questions, padding=True, padding_side="right", truncation=True, max_length=256, return_tensors="pt"
        )
        # `long`, because a question without words would be an empty float tensor
        return {f"qformer_{name}": encoded[name].long() for name in ("input_ids", "attention_mask")}

    def face_tensors(self, pictures: list[Image.Image], faces: list[Faces]) -> dict:
        """Priors as tensors, padded to `max_faces`."""
        shape = (len(pictures), self.max_faces)
        boxes = np.zeros((*shape, 4), np.float32)
        landmarks = np.zeros((*shape, self.num_landmarks, 2), np.float32)
        embeddings = np.zeros((*shape, self.embedding_size), np.float32)
        mask = np.zeros(shape, bool)
        for i, (picture, found) in enumerate(zip(pictures, faces, strict=True)):
            for j, face in enumerate(found[: self.max_faces]):
                points = np.concatenate([np.reshape(face["box"], (2, 2)), np.asarray(face["landmarks"])])
                points = self.to_input_frame(points, picture.size)
                embedding = face["embedding"]
                if embedding is None and not self.face_settings.get("embeddings", True):  # the checkpoint reads none
                    embedding = np.zeros(self.embedding_size)
                size = 0 if embedding is None else len(embedding)
                if points.shape[0] != 2 + self.num_landmarks or size != self.embedding_size:
                    raise ValueError(
                        f"a face has {points.shape[0] - 2} landmarks and an embedding of {size}, "
                        f"but this checkpoint was made for {self.num_landmarks} and {self.embedding_size}: "
                        f"compute the faces with the {self.face_backend!r} backend"
                    )
                boxes[i, j], landmarks[i, j] = points[:2].reshape(4), points[2:]
                embeddings[i, j], mask[i, j] = embedding, True
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

    def _process_images(self, images, sentences=(), **kwargs):
        inputs, tokens = super()._process_images(images, **kwargs)
        return inputs, [token + sentence for token, sentence in zip(tokens, sentences, strict=True)]

    @property
    def video_processor(self):
        """Frames are pictures: what makes stills into pixels does so with clips."""
        return self.image_processor

    def _process_videos(self, videos, sentences=(), **kwargs):
        known = self.image_processor.valid_kwargs.__annotations__  # how frames are sampled is none of its concern
        kwargs = {name: value for name, value in kwargs.items() if name in known}
        frames = self.video_processor([frame for clip in videos for frame in clip], **kwargs)
        inputs = {"pixel_values_videos": frames["pixel_values"], "frames_per_clip": [len(clip) for clip in videos]}
        tokens = [self.replace_video_token(inputs, index) for index in range(len(videos))]
        return inputs, [token + sentence for token, sentence in zip(tokens, sentences, strict=True)]

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs) -> str:
        return self.video_token * (self.frame_seq_length * video_inputs["frames_per_clip"][video_idx])

    @property
    def unused_input_names(self) -> list[str]:
        return ["frames_per_clip"]

    def validate_inputs(self, videos=None, **inputs):
        """Clips are counted in `__call__`; the base class would make arrays of all their frames for that."""
        if videos is None:
            super().validate_inputs(**inputs)

    def _multimodal_inputs_from_conversations(self, conversations, *args, **kwargs):
        """Besides the pictures and clips, take the `faces` and the `attributes` that stand beside them."""
        images, videos, audios, extra = super()._multimodal_inputs_from_conversations(conversations, *args, **kwargs)
        # A list beside "video" is the frames of one clip, even one of paths.
        videos = [[self.as_pictures(v) if isinstance(v, (list, tuple)) else v for v in clips] for clips in videos]
        blocks = [
            block
            for conversation in conversations
            for message in conversation
            if not isinstance(message["content"], str)
            for block in message["content"]
        ]
        for kind, prefix in {"image": "", "video": "video_"}.items():
            for name in ("faces", "attributes"):
                beside = [block.get(name) for block in blocks if block["type"] == kind]
                if any(one is not None for one in beside):
                    extra = {**extra, prefix + name: beside}
        return images, videos, audios, extra

    @property
    def model_input_names(self) -> list[str]:
        return [
            *super().model_input_names,
            "pixel_values_videos",
            *("qformer_input_ids", "qformer_attention_mask"),
            *("face_boxes", "face_landmarks", "face_embeddings", "face_mask"),
        ]


def one_each(given: list | None, media: list, what: str, names: str) -> list:
    """What was given for each of the media, or `None` for each."""
    if given is not None and len(given) != len(media):
        raise ValueError(f"{what} of {len(given)} {names} were given for {len(media)} {names}")
    return [None] * len(media) if given is None else list(given)


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
