// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {VmSafe} from "forge-std/Vm.sol";

import {IJobEscrow, JobState, Order, Result, SkipReason} from "../src/interfaces/IJobEscrow.sol";
import {Base} from "./Base.sol";
import {
    BurningWallet,
    DirtyReturnWallet,
    InvalidWallet,
    KeyWallet,
    ReturnBombWallet,
    RevertBombWallet,
    RevertingWallet,
    ShortReturnWallet,
    SilentWallet,
    SpendingWallet
} from "./mocks/Wallets.sol";

/// @notice Whose signature counts, where, and how often.
contract SignaturesTest is Base {
    /// @dev Half the order of the curve; a higher s is the same signature's twin.
    uint256 internal constant CURVE_ORDER = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141;
    /// @dev What `SignatureLib` gives a wallet.
    uint256 internal constant WALLET_GAS = 100_000;

    // ── Keys ────────────────────────────────────────────────────────────────────────────────────────────────────────

    function test_SkipsWhen_TheSignatureIsTheHighTwin() external {
        Order memory order = _order();
        bytes32 jobId = _open(order);
        Result memory result = _result(order);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(node.privateKey, _receiptDigest(jobId, PRICE, RESULT_HASH));
        result.receiptSignature = abi.encodePacked(r, bytes32(CURVE_ORDER - uint256(s)), v == 27 ? 28 : 27);
        _submitSkipped(result, SkipReason.BadReceiptSignature);
    }

    function test_SkipsWhen_TheSignatureIsCompact() external {
        Order memory order = _order();
        bytes32 jobId = _open(order);
        Result memory result = _result(order);
        (bytes32 r, bytes32 vs) = vm.signCompact(node.privateKey, _receiptDigest(jobId, PRICE, RESULT_HASH));
        result.receiptSignature = abi.encodePacked(r, vs);
        _submitSkipped(result, SkipReason.BadReceiptSignature);
    }

    function testFuzz_SkipsWhen_TheSignatureIsRubbish(bytes calldata rubbish) external {
        Order memory order = _order();
        _open(order);
        Result memory result = _result(order);
        result.receiptSignature = rubbish;
        _submitSkipped(result, SkipReason.BadReceiptSignature);
    }

    function testFuzz_SkipsWhen_OneBitOfTheSignatureFlips(uint256 bit) external {
        Order memory order = _order();
        _open(order);
        Result memory result = _result(order);
        bit = bound(bit, 0, 65 * 8 - 1);
        result.receiptSignature[bit / 8] ^= bytes1(uint8(1 << (bit % 8)));
        _submitSkipped(result, SkipReason.BadReceiptSignature);
    }

    /// @dev An account that delegates its code (EIP-7702) is still its key's.
    function test_TheKeyOfADelegatedAccountStillSigns() external {
        Order memory order = _order();
        _open(order);
        vm.signAndAttachDelegation(address(new RevertingWallet()), node.privateKey);
        _submit(_result(order));
        assertGt(node.addr.code.length, 0);
        assertEq(escrow.earned(node.addr, NATIVE), PRICE);
    }

    // ── Replays ─────────────────────────────────────────────────────────────────────────────────────────────────────

    function test_AJobsIdDiffersBetweenChainsAndContracts() external {
        Order memory order = _order();
        bytes32 here = escrow.jobIdOf(order);
        IJobEscrow twin = _deployEscrow(address(_deployRegistry()));
        assertTrue(twin.jobIdOf(order) != here);
        vm.chainId(block.chainid + 1);
        assertTrue(escrow.jobIdOf(order) != here);
    }

    function test_AReceiptHasNoEffectInAnotherContract() external {
        Order memory order = _order();
        Result memory result = _result(order);
        IJobEscrow twin = _deployEscrow(address(_deployRegistry()));
        vm.prank(requester.addr);
        bytes32 jobId = twin.openJob{value: MAX_PRICE}(order, _spec());
        vm.expectEmit(address(twin));
        emit IJobEscrow.Skipped(jobId, SkipReason.BadReceiptSignature);
        twin.submitResults(_batch(result));
        assertEq(twin.earned(node.addr, NATIVE), 0);
    }

    function test_AReceiptHasNoEffectOnAnotherChain() external {
        Order memory order = _order();
        Result memory result = _result(order);
        vm.chainId(block.chainid + 1);
        _open(order);
        _submitSkipped(result, SkipReason.BadReceiptSignature);
    }

    function test_AnAssignmentHasNoEffectOnAnotherChain() external {
        Order memory order = _assignedOrder();
        Result memory result = _result(order);
        vm.chainId(block.chainid + 1);
        _open(order);
        result.receiptSignature = _result(order).receiptSignature;
        _submitSkipped(result, SkipReason.BadAssignmentSignature);
    }

    function test_AReceiptHasNoEffectForAnotherJob() external {
        Order memory order = _order();
        Result memory other = _result(order);
        order.nonce = 1;
        _open(order);
        Result memory result = _result(order);
        result.receiptSignature = other.receiptSignature;
        _submitSkipped(result, SkipReason.BadReceiptSignature);
    }

    // ── Contract wallets ────────────────────────────────────────────────────────────────────────────────────────────

    function _walletOrder(address wallet) internal view returns (Order memory order) {
        order = _order();
        order.node = wallet;
    }

    /// @dev Signed by the node's key, paid to the wallet.
    function _walletResult(Order memory order) internal view returns (Result memory result) {
        result = _result(order);
        result.node = order.node;
    }

    function test_AWalletMaySignReceipts() external {
        KeyWallet wallet = new KeyWallet(node.addr);
        Order memory order = _walletOrder(address(wallet));
        _open(order);
        _submit(_walletResult(order));
        assertEq(escrow.earned(address(wallet), NATIVE), PRICE);
    }

    function test_AWalletMayAssign() external {
        KeyWallet wallet = new KeyWallet(assigner.addr);
        Order memory order = _assignedOrder();
        order.assigner = address(wallet);
        bytes32 jobId = _open(order);
        _submit(_result(order));
        _assertJob(jobId, JobState.Submitted, PRICE, block.timestamp + WINDOW, node.addr);
    }

    function test_SkipsWhen_TheWalletsKeyIsAnother() external {
        Order memory order = _walletOrder(address(new KeyWallet(otherNode.addr)));
        _open(order);
        _submitSkipped(_walletResult(order), SkipReason.BadReceiptSignature);
    }

    function test_SkipsWhen_TheAssigningWalletRefuses() external {
        Order memory order = _assignedOrder();
        order.assigner = address(new RevertingWallet());
        _open(order);
        _submitSkipped(_result(order), SkipReason.BadAssignmentSignature);
    }

    function test_AWalletMaySpendItsAllowance() external {
        Order memory order = _walletOrder(address(new SpendingWallet(WALLET_GAS * 9 / 10)));
        _open(order);
        _submit(_walletResult(order));
        assertEq(escrow.earned(order.node, NATIVE), PRICE);
    }

    function test_SkipsWhen_TheWalletSpendsMoreThanItsAllowance() external {
        Order memory order = _walletOrder(address(new SpendingWallet(WALLET_GAS)));
        _open(order);
        _submitSkipped(_walletResult(order), SkipReason.BadReceiptSignature);
    }

    /// @dev A batch with one hostile signer between two good ones: the good ones are paid, and what the hostile one costs
    /// is bounded by its allowance.
    function _assertHarmless(address hostile, bool accepts) internal {
        Result[] memory results = new Result[](3);
        for (uint256 i = 0; i < 3; ++i) {
            Order memory order = i == 1 ? _walletOrder(hostile) : _order();
            order.nonce = uint64(i);
            _open(order);
            results[i] = _walletResult(order);
        }
        uint256 spent = gasleft();
        vm.prank(settler);
        escrow.submitResults(results);
        spent -= gasleft();
        assertLt(spent, 400_000, "gas");
        assertEq(escrow.earned(node.addr, NATIVE), 2 * PRICE, "the good ones");
        assertEq(escrow.earned(hostile, NATIVE), accepts ? PRICE : 0, "the hostile one");
    }

    function test_AWalletThatBurnsItsGasHarmsNoOther() external {
        _assertHarmless(address(new BurningWallet()), false);
    }

    function test_AWalletThatHaltsHarmsNoOther() external {
        _assertHarmless(address(new InvalidWallet()), false);
    }

    function test_AWalletThatRevertsHarmsNoOther() external {
        _assertHarmless(address(new RevertingWallet()), false);
    }

    function test_AWalletThatRevertsWithMuchDataHarmsNoOther() external {
        _assertHarmless(address(new RevertBombWallet()), false);
    }

    function test_AWalletThatReturnsMuchDataHarmsNoOther() external {
        _assertHarmless(address(new ReturnBombWallet()), true);
    }

    function test_AWalletThatReturnsTooLittleHarmsNoOther() external {
        _assertHarmless(address(new ShortReturnWallet()), false);
    }

    function test_AWalletThatReturnsDirtHarmsNoOther() external {
        _assertHarmless(address(new DirtyReturnWallet()), false);
    }

    function test_AWalletThatReturnsNothingHarmsNoOther() external {
        _assertHarmless(address(new SilentWallet()), false);
    }

    /// @dev Whatever gas a batch is given, it either reverts as a whole or the wallet's item is paid: the sender's
    /// frugality never skips a valid item.
    function testFuzz_TooLittleGasNeverSkipsAValidItem(uint256 gas_) external {
        Order memory order = _walletOrder(address(new SpendingWallet(WALLET_GAS * 9 / 10)));
        _open(order);
        Result[] memory results = _batch(_walletResult(order));
        gas_ = bound(gas_, 30_000, 400_000);
        try escrow.submitResults{gas: gas_}(results) {
            assertEq(escrow.earned(order.node, NATIVE), PRICE);
        } catch {
            assertEq(escrow.earned(order.node, NATIVE), 0);
        }
    }

    function test_RevertWhen_TheWalletCannotBeGivenItsAllowance() external {
        Order memory order = _walletOrder(address(new KeyWallet(node.addr)));
        _open(order);
        Result[] memory results = _batch(_walletResult(order));
        try escrow.submitResults{gas: WALLET_GAS}(results) {
            fail();
        } catch (bytes memory reason) {
            assertEq(bytes4(reason), IJobEscrow.NotEnoughGas.selector);
        }
    }
}
