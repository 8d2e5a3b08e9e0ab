package bypass

var surfaces []bypass
